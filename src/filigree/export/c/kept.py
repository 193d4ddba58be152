"""Modules that stand for what a graph does between its layers: keep a tensor, take it again, add it to another,
flatten it.

They are steps of a program, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from filigree.export.c.source import CMemory


class Kept:
    """It is the memory of a tensor that is read again later: the name of a buffer in C, and the tensor's shape."""

    name: str = ""
    shape: tuple[int, ...] = ()


class Keep(nn.Module):
    """The tensor stays the current one, and is kept."""

    def __init__(self, name: str, kept: Kept) -> None:
        super().__init__()
        self.name, self.kept = name, kept


class Restore(Keep):
    """What was kept takes the place of the current tensor."""


class Add(Keep):
    """What was kept is added to the current tensor."""


class View(nn.Flatten):
    """`y.view(-1, width)`, by which a program in C can only flatten samples."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, y: Tensor) -> Tensor:
        return y.reshape(-1, self.width)


def name_buffers(program: Sequence[Any]) -> None:
    """Give what is kept the names of buffers; one serves again after the last step that reads it."""
    ends = {step.kept: i for i, step in enumerate(program) if isinstance(step, Keep)}
    busy: dict[str, Kept] = {}
    for i, step in enumerate(program):
        busy = {name: kept for name, kept in busy.items() if ends[kept] >= i}
        if type(step) is Keep:
            step.kept.name = next(name for j in range(len(program)) if (name := f"kept_{j}") not in busy)
            busy[step.kept.name] = step.kept


def buffers(program: Sequence[Any], number: str = "float") -> list[CMemory]:
    """Return these buffers, each as often as it serves, for the shapes that they hold."""
    return [CMemory(step.kept.name, math.prod(step.kept.shape), number) for step in program if type(step) is Keep]
