"""Erdos-Renyi layers: every connection equally likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from filigree.config import config
from filigree.topology.shards import WHOLE, Whole
from filigree.topology.topology import Drawn, Size, Topology


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
        return [self._draw_one(size, generator, WHOLE) for size in sizes]

    def draw_rows(self, sizes: Sequence[Size], generator: torch.Generator, parts: Sequence[Whole]) -> list[Drawn]:
        pairs = zip(sizes, parts, strict=True)
        return [Drawn(self._draw_one(size, generator, part)) for size, part in pairs]

    def _draw_one(self, size: Size, generator: torch.Generator, part: Whole) -> Tensor | None:
        count = self.connections(size)
        if self.replace:
            return part.with_repeats(size.numel, count, generator, *_ends(size, part)) if size.numel else _nothing()
        return None if count == size.numel else part.distinct(size.numel, count, generator, *_ends(size, part))


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
        """The density of each layer; of one without weights it is 1."""
        raw = [(s.out_features + s.in_units + sum(s.kernel)) / max(s.numel, 1) for s in sizes]
        dense = {i for i, size in enumerate(sizes) if not size.numel}
        while True:
            connections = self.density * sum(s.numel for s in sizes) - sum(sizes[i].numel for i in dense)
            rest = [i for i in range(len(sizes)) if i not in dense]
            scale = max(connections, 0) / sum(raw[i] * sizes[i].numel for i in rest) if rest else 0.0
            full = [i for i in rest if raw[i] * scale >= 1]
            if not full:
                return [1.0 if i in dense else raw[i] * scale for i in range(len(sizes))]
            dense.update(full)

    def draw(self, sizes: Sequence[Size], generator: torch.Generator) -> list[Tensor | None]:
        return [drawn.flat_indices for drawn in self.draw_rows(sizes, generator, [WHOLE] * len(sizes))]

    def draw_rows(self, sizes: Sequence[Size], generator: torch.Generator, parts: Sequence[Whole]) -> list[Drawn]:
        return [
            Drawn(
                None
                if density >= 1
                else part.distinct(size.numel, round(density * size.numel), generator, *_ends(size, part))
            )
            for size, density, part in zip(sizes, self.densities(sizes), parts, strict=True)
        ]


def _ends(size: Size, part: Whole) -> tuple[int, int]:
    """Where the flat indices of a part's rows begin and end."""
    first, last = part.rows(size.out_features)
    return first * size.in_features, last * size.in_features


def _nothing() -> Tensor:
    return torch.empty(0, dtype=torch.int64)
