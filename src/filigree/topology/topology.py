"""What a topology is: from the sizes of the layers to the flat indices of their connections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from filigree.config import Config
from filigree.topology.shards import WHOLE, Whole


class Size(NamedTuple):
    """The sides of a layer's weight matrix; of a convolution `(out_channels, in_channels / groups x kernel)`."""

    out_features: int
    in_features: int
    kernel: tuple[int, ...] = ()  # the sides of a convolution's kernel

    @property
    def numel(self) -> int:
        return self.out_features * self.in_features

    @property
    def in_units(self) -> int:
        """The input channels (or units): the length of a row without the kernel's sides."""
        return self.in_features // math.prod(self.kernel)


class Drawn(NamedTuple):
    """A layer's connections: sorted flat indices (None: it stays dense), initial values if there are any, a note."""

    flat_indices: Tensor | None
    values: Tensor | None = None
    note: str = ""


class Topology(Config):
    """Base of topologies: `draw` decides for all layers together, since paths run through a whole network."""

    def draw(self, sizes: Sequence[Size], generator: torch.Generator) -> list[Tensor | None]:
        """Draw each layer's sorted flat indices `out * in_features + in`, or None: it stays dense."""
        raise NotImplementedError

    def draw_weighted(self, sizes: Sequence[Size], generator: torch.Generator) -> list[Drawn]:
        """Draw as `draw` does, with initial values and notes for topologies that have them."""
        return [Drawn(flat_indices) for flat_indices in self.draw(sizes, generator)]

    def draw_rows(self, sizes: Sequence[Size], generator: torch.Generator, parts: Sequence[Whole]) -> list[Drawn]:
        """Draw as `draw_weighted` does, of each layer the rows that its part has, numbered from the first of them.

        By default whole layers are drawn, and cut: each takes the memory of its connections meanwhile.
        """
        rows = []
        for drawn, size, part in zip(self.draw_weighted(sizes, generator), sizes, parts, strict=True):
            first, last = (row * size.in_features for row in part.rows(size.out_features))
            if drawn.flat_indices is None or (first, last) == (0, size.numel):
                rows.append(drawn)
                continue
            begin, end = torch.searchsorted(drawn.flat_indices, torch.tensor([first, last])).tolist()
            values = None if drawn.values is None else drawn.values[begin:end].clone()
            rows.append(Drawn(drawn.flat_indices[begin:end] - first, values, drawn.note))
        return rows

    def draw_one(self, size: Size, generator: torch.Generator, part: Whole = WHOLE) -> Tensor:
        """Draw the sorted flat indices of a single layer; all of them where it would stay dense. Of a layer whose rows
        are divided over processes, those of the rows here."""
        flat_indices = self.draw_rows([size], generator, [part])[0].flat_indices
        first, last = part.rows(size.out_features)
        return torch.arange((last - first) * size.in_features) if flat_indices is None else flat_indices
