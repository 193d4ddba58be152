"""What a forked child is doing at any time, told to its parent through one shared byte."""

from __future__ import annotations

import functools
import importlib
import mmap
from typing import Any

from filigree.dynamics import Evolution
from filigree.io import saving
from filigree.measure.timing import time_interleaved
from filigree.train import Record
from filigree.train import fit_run as training
from filigree.train.checkpoints import Checkpoint

# as attributes these names are functions
recipe = importlib.import_module("filigree.recipes.run")
measuring = importlib.import_module("filigree.recipes.measuring")
compressing = importlib.import_module("filigree.cli.compress")
output = importlib.import_module("filigree.cli.output")
reporting = importlib.import_module("filigree.cli.report")


PHASES = {  # a phase -> a kill comes at most so many ms after its begin; "else": starting, loading, building
    "else": 200.0, "train": 60.0, "rewire": 4.0, "evaluate": 6.0, "checkpoint": 12.0, "compress": 40.0, "save": 8.0,
    "record": 6.0, "measure": 150.0, "report": 900.0,
}  # fmt: skip
NAMES = list(PHASES)
OWNERS: dict[str, list[tuple[Any, str]]] = {
    "train": [(training.FitRun, "_steps")], "rewire": [(Evolution, "step")],
    "evaluate": [(training, "evaluate_batches")],
    "checkpoint": [(Checkpoint, "save")], "compress": [(recipe, "compress_"), (compressing, "compress_")],
    "save": [(saving, "save"), (compressing, "save")], "record": [(Record, "save")],
    "measure": [(measuring, "_times")], "report": [(output, "write_report"), (reporting, "write_report")],
}  # fmt: skip


class Board:
    """The shared byte. Made in the parent, written in the child, and still there when the child is dead."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)

    @property
    def phase(self) -> str:
        return NAMES[self._byte[0]]

    def enter(self, phase: str) -> str:
        """Say what is done now. Returns what was done before."""
        before = self.phase
        self._byte[0] = NAMES.index(phase)
        return before


def watch(board: Board) -> None:
    """In the child: every function of a phase says so while it runs. What they do is left as it is.

    But the timings of trained networks, which no one reads here, are cut short.
    """
    board.enter("else")
    setattr(recipe, "time_interleaved", lambda works, seconds: time_interleaved(works, 0.01, 2))  # noqa: B010 - of a module that mypy cannot see
    for phase, owners in OWNERS.items():
        for owner, name in owners:
            setattr(owner, name, _telling(getattr(owner, name), phase, board))


def _telling(function: Any, phase: str, board: Board) -> Any:
    @functools.wraps(function)
    def told(*arguments: Any, **named: Any) -> Any:
        before = board.enter(phase)
        try:
            return function(*arguments, **named)
        finally:
            board.enter(before)

    return told
