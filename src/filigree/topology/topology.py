"""What a topology is: from the sizes of the layers to the flat indices of their connections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from filigree.config import Config


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

    def draw_one(self, size: Size, generator: torch.Generator) -> Tensor:
        """Draw the sorted flat indices of a single layer; all of them where it would stay dense."""
        flat_indices = self.draw([size], generator)[0]
        return torch.arange(size.numel) if flat_indices is None else flat_indices
