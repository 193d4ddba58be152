"""Erdos-Renyi layers: every connection equally likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from filigree.config import config
from filigree.topology.flat_indices import distinct
from filigree.topology.topology import Size, Topology


@config
class ErdosRenyi(Topology):
    """A random bipartite graph with a given number of connections (SET; Chouliaras 2021, 3.5.1 and Algorithm 1).

    Two units are connected with probability `p = min(1, epsilon (n_in + n_out) / (n_in n_out))`, or `p = density`;
    exactly `round(p n_in n_out)` distinct connections are drawn, uniformly, in O(connections). A layer at p = 1 stays
    dense. Of a convolution n_in and n_out are channels, the kernel's sides are added to their sum, and p is a share of
    all weights.

    Args:
        epsilon: connections per unit, counting both sides; > 0. Give this or `density`.
        density: share of all possible connections, in (0, 1].
        replace: draw `int(epsilon (n_in + n_out))` connections *with* replacement and merge duplicates, as the public
            code of SET's authors does: a few connections fewer, and no layer stays dense.
    """

    epsilon: Annotated[float, pydantic.Field(gt=0)] | None = None
    density: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.density is None):
            raise ValueError(
                "ErdosRenyi: exactly one of epsilon and density is expected. "
                f"Got epsilon={self.epsilon}, density={self.density}."
            )

    def connections(self, size: Size) -> int:
        """How many connections are drawn for a layer: p n_in n_out, before duplicates are merged."""
        if self.epsilon is not None:
            connections = self.epsilon * (size.out_features + size.in_units + sum(size.kernel))
            return int(connections) if self.replace else min(round(connections), size.numel)
        assert self.density is not None
        return round(self.density * size.numel)

    def draw(self, sizes: Sequence[Size], generator: torch.Generator) -> list[Tensor | None]:
        return [self._draw_one(size, generator) for size in sizes]

    def _draw_one(self, size: Size, generator: torch.Generator) -> Tensor | None:
        count = self.connections(size)
        if self.replace:
            return torch.randint(size.numel, (count,), generator=generator).unique() if size.numel else _nothing()
        return None if count == size.numel else distinct(size.numel, count, generator)


@config
class ErdosRenyiKernel(Topology):
    """Erdos-Renyi-Kernel: one density for a whole network, more of it for small layers (RigL; Evci et al. 2020).

    A layer's density is proportional to `(n_in + n_out + sum(kernel)) / (n_in n_out prod(kernel))`, with n_in and n_out
    channels of a convolution or units of a linear layer (there it is Erdos-Renyi). The constant is chosen so that all
    layers together have `density` of their connections; layers for which it would exceed 1 stay dense.

    Args:
        density: share of all possible connections of all layers, in (0, 1].
    """

    density: Annotated[float, pydantic.Field(gt=0, le=1)]

    def densities(self, sizes: Sequence[Size]) -> list[float]:
        """The density of each layer."""
        raw = [(s.out_features + s.in_units + sum(s.kernel)) / s.numel for s in sizes]
        dense: set[int] = set()
        while True:
            connections = self.density * sum(s.numel for s in sizes) - sum(sizes[i].numel for i in dense)
            rest = [i for i in range(len(sizes)) if i not in dense]
            scale = max(connections, 0) / sum(raw[i] * sizes[i].numel for i in rest) if rest else 0.0
            full = [i for i in rest if raw[i] * scale >= 1]
            if not full:
                return [1.0 if i in dense else raw[i] * scale for i in range(len(sizes))]
            dense.update(full)

    def draw(self, sizes: Sequence[Size], generator: torch.Generator) -> list[Tensor | None]:
        return [
            None if density >= 1 else distinct(size.numel, round(density * size.numel), generator)
            for size, density in zip(sizes, self.densities(sizes), strict=True)
        ]


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.int64)
