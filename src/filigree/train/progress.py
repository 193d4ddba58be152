"""The progress of a run: a live bar on a terminal, a line an epoch in a log, or nothing."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from filigree.train.history import Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

PERIOD = 0.2  # seconds between updates: a few microseconds of every millisecond's step would already show


def progress_columns() -> tuple[ProgressColumn, ...]:
    """Columns for a rich `Progress` that shows runs of `fit`: name, bar, epoch, loss, accuracy, steps a second."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    return (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[accuracy]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )


class Bar:
    """One run's progress.

    Args:
        progress: a rich `Progress` to add a task to (several runs side by side; made with `progress_columns()`), True
            (a bar on a terminal, else a line an epoch on standard error), False, or None: a bar only on a terminal.
        label: the run's name. epochs: its length. steps: batches an epoch, None if unknown. done: epochs done already.
    """

    def __init__(
        self, progress: Progress | bool | None, label: str, epochs: int, steps: int | None, done: int = 0
    ) -> None:
        self.label, self.epochs, self.steps, self.done = label, epochs, steps, done
        self.due = math.inf  # when `tick` wants to be called next
        self.lines: Console | None = None
        self._progress: Progress | None = None if isinstance(progress, bool) else progress
        self._owned = self._progress is None
        if progress is True or progress is None:
            from rich.console import Console

            console = Console(file=sys.stderr)
            if console.is_terminal or console.is_jupyter:
                from rich.progress import Progress

                self._progress = Progress(*progress_columns(), console=console, transient=True, refresh_per_second=4)
            elif progress:
                self.lines = console

    def __enter__(self) -> Self:
        if self._progress is not None:
            if self._owned:
                self._progress.start()
            per_epoch = self.steps or 1
            self._task = self._progress.add_task(
                self.label, total=self.epochs * per_epoch, completed=self.done * per_epoch, epoch=self.done,
                epochs=self.epochs, loss="", accuracy="", speed="",
            )  # fmt: skip
            self._last, self._since = 0, time.perf_counter()
            self.due = self._since + PERIOD
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.due = math.inf
        if self._progress is not None and self._owned:
            self._progress.stop()

    def tick(self, epoch: int, step: int, loss: float) -> None:
        """Show step `step` (from 1) of an epoch; call it when `due` is past."""
        assert self._progress is not None
        now = time.perf_counter()
        speed = (step - self._last) / max(now - self._since, 1e-9)
        self._last, self._since, self.due = step, now, now + PERIOD
        completed = epoch * self.steps + step if self.steps else epoch
        self._progress.update(
            self._task, completed=completed, epoch=epoch + 1, loss=f"{loss:.4f}", speed=f"{speed:,.0f} steps/s"
        )

    def epoch(self, row: Row, steps: int) -> None:
        """Show a finished epoch of so many steps."""
        seconds = row["seconds"]
        accuracy = next((f"{key[:-9]} {row[key]:.1%}" for key in _SHOWN if key in row), "")
        if self._progress is not None:
            self._progress.update(
                self._task, completed=(row["epoch"] + 1) * (self.steps or 1), epoch=row["epoch"] + 1,
                loss=f"{row['train_loss']:.4f}", accuracy=accuracy, speed=f"{steps / max(seconds, 1e-9):,.0f} steps/s",
            )  # fmt: skip
            self._last, self._since = 0, time.perf_counter()
        elif self.lines is not None:
            line = f"{self.label} epoch {row['epoch'] + 1}/{self.epochs} loss {row['train_loss']:.4f} {accuracy}"
            self.lines.print(f"{line.rstrip()} {seconds:.2f} s", highlight=False, markup=False, soft_wrap=True)


_SHOWN = ("val_accuracy", "test_accuracy", "train_accuracy")
