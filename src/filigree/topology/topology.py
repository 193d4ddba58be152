"""What a topology is: from the sizes of the layers to the places of their connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from filigree.config import Config


class Size(NamedTuple):
    """The sides of a layer's weight matrix."""

    out_features: int
    in_features: int

    @property
    def places(self) -> int:
        return self.out_features * self.in_features


class Topology(Config):
    """Base of topologies: `draw` decides for all layers together, since paths run through a whole network."""

    def draw(self, sizes: Sequence[Size], generator: torch.Generator) -> list[Tensor | None]:
        """For each layer the sorted places `out * in_features + in` of its connections, or None: stays dense."""
        raise NotImplementedError
