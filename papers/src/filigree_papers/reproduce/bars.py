"""Progress bars for runs of `fit` and for plain counts, in one display."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from filigree.train import progress_columns


class Bars(Progress):
    """A rich `Progress` for `filigree.recipes.run`, which also takes tasks that only count."""

    def __init__(self, console: Console) -> None:
        self.of_fit = progress_columns()
        self.of_counts = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        super().__init__(console=console)

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            self.columns = self.of_fit if "epoch" in task.fields else self.of_counts
            yield self.make_tasks_table([task])

    def count(self, name: str, total: int, **fields: Any) -> Any:
        return self.add_task(name, total=total, **fields)

    def drop_fits(self) -> None:
        """Take away the bars of runs: nobody can read hundreds."""
        for task in self.tasks:
            if "epoch" in task.fields:
                self.remove_task(task.id)
