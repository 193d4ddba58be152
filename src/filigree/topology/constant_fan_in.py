"""Layers in which every unit has the same number of inputs: weights grow with the units, not with their product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pydantic
import torch
from torch import Tensor

from filigree.config import config
from filigree.topology.topology import Size, Topology


@config
class ConstantFanIn(Topology):
    """Every unit (or output channel) reads `connections` distinct inputs, drawn uniformly (Keller et al.).

    A network of n units then has `connections * n` weights: cost grows linearly with the units. They are drawn in
    O(connections * n). A layer with no more inputs than that stays dense.

    Args:
        connections: inputs of a unit, >= 1.
    """

    connections: Annotated[int, pydantic.Field(ge=1)]

    def draw(self, sizes: Sequence[Size], generator: torch.Generator) -> list[Tensor | None]:
        return [self._draw_one(size, generator) for size in sizes]

    def _draw_one(self, size: Size, generator: torch.Generator) -> Tensor | None:
        k, rows, cols = self.connections, size.out_features, size.in_features
        if k >= cols:
            return None
        if 2 * k > cols:  # many of few: the first of a shuffle
            columns = torch.rand(rows, cols, generator=generator).argsort(1)[:, :k].sort(1).values
        else:
            columns = torch.randint(cols, (rows, k), generator=generator).sort(1).values
            again = _repeats(columns)
            while len(again):  # whole rows, so that all sets stay equally likely
                fresh = torch.randint(cols, (len(again), k), generator=generator).sort(1).values
                columns[again] = fresh
                again = again[_repeats(fresh)]
        return (columns + torch.arange(rows).unsqueeze(1) * cols).flatten()


def _repeats(columns: Tensor) -> Tensor:
    """The rows in which a number comes twice."""
    return (columns.diff(dim=1) == 0).any(1).nonzero().squeeze(1)
