"""What a reproduction is: recipes, the figures that were printed, and a table of both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import scipy.stats
from rich import box
from rich.progress import Progress
from rich.table import Table

from filigree.recipes import Recipe, RecipeError, load, run
from filigree.storage import write_json
from filigree.train import Record

Records = dict[str, dict[str, list[Record]]]  # case -> method -> the runs


@dataclass(frozen=True)
class Reproduction:
    """A published experiment.

    Attributes:
        name, about: for `filigree list`. recipe: the recipe all its cases share. cases: name -> settings
            (`model.hidden=[64]`) of each. printed: case -> method -> figure -> number, test accuracies in [0, 1].
        figure: the metric that is set beside the printed `test`. quick: settings of a short run, which says only that
            all works. claims: each looks at the records and gives a line on one claim of the document.
    """

    name: str
    about: str
    recipe: str
    cases: dict[str, list[str]]
    printed: dict[str, dict[str, dict[str, float]]]
    quick: list[str] = field(default_factory=list)
    claims: Sequence[Callable[[Records], str]] = ()
    notes: Sequence[str] = ()

    def recipe_of(self, case: str, quick: bool = False, settings: Sequence[str] = ()) -> Recipe:
        made = load(self.recipe, [*self.cases[case], *(self.quick if quick else []), *settings])
        return made.model_copy(update={"name": f"{self.name} {case}" if len(self.cases) > 1 else self.name})

    def table(self, records: Records) -> Table:
        """Our figures (mean over runs and standard deviation) with the printed ones in brackets."""
        table = Table(title=f"{self.name}: test accuracy in %, \\[printed]", title_justify="left", box=box.SIMPLE_HEAD)
        methods = list(dict.fromkeys(method for runs in records.values() for method in runs))
        for heading in ("", *methods):
            table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
        for case, runs in records.items():
            cells = []
            for method in methods:
                printed = self.printed.get(case, {}).get(method, {}).get("test")
                ours = metric(runs.get(method, []), "test_accuracy")
                cells.append(spread(ours) + ("" if printed is None else f"\n\\[{100 * printed:.2f}]"))
            table.add_row(case, *cells)
        return table

    def summary(self, records: Records) -> list[dict[str, Any]]:
        """A row a case and method: means and deviations of what was measured, and what was printed."""
        rows = []
        for case, runs in records.items():
            for method, its in runs.items():
                row: dict[str, Any] = {"case": case, "method": method, "runs": len(its)}
                for key in ("test_accuracy", "val_accuracy", "final_train_accuracy", "train_seconds"):
                    numbers = metric(its, key)
                    if numbers:
                        row[key] = statistics.fmean(numbers)
                        row[f"{key}_deviation"] = statistics.stdev(numbers) if len(numbers) > 1 else None
                for key in ("train_step_ms", "backward_ms"):
                    times = [r.cost[key]["median"] for r in its if key in r.cost]
                    row[key] = statistics.median(times) if times else None
                row["printed"] = self.printed.get(case, {}).get(method)
                rows.append(row)
        return rows


@dataclass(frozen=True)
class Computation:
    """A published figure that is computed, not trained by a recipe.

    Attributes:
        compute: whether it is to be quick -> rows, plain dicts of figures. claims: rows -> a line each.
    """

    name: str
    about: str
    compute: Callable[[bool], list[dict[str, Any]]]
    claims: Sequence[Callable[[list[dict[str, Any]]], str]] = ()
    notes: Sequence[str] = ()

    def run(self, out: Path, quick: bool = False) -> list[dict[str, Any]]:
        """Compute, and write `out/summary.json`."""
        record = Record.start(self.name)
        rows = self.compute(quick)
        write_json(
            out / "summary.json",
            {
                "name": self.name, "quick": quick, "machine": record.machine, "commit": record.commit,
                "notes": list(self.notes), "claims": [claim(rows) for claim in self.claims], "rows": rows,
            },
        )  # fmt: skip
        return rows

    def table(self, rows: list[dict[str, Any]]) -> Table:
        table = Table(*rows[0], title=self.name, title_justify="left", box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
        return table


def run_again(
    reproduction: Reproduction,
    out: Path,
    *,
    cases: Sequence[str] | None = None,
    quick: bool = False,
    settings: Sequence[str] = (),
    runs: Sequence[int] | None = None,
    progress: Progress | bool | None = None,
) -> Records:
    """Run what is missing, case by case; `out/summary.json` is written after each. Goes on where it stopped."""
    records: Records = {}
    for case in cases or reproduction.cases:
        if case not in reproduction.cases:
            raise RecipeError(f"--case {case}: the cases of {reproduction.name} are {', '.join(reproduction.cases)}.")
        recipe = reproduction.recipe_of(case, quick, settings)
        folders = run(recipe, out / case, runs=runs, resume=True, progress=progress)
        for folder in folders:
            record = Record.load(folder)
            records.setdefault(case, {}).setdefault(record.method, []).append(record)
        write_json(
            out / "summary.json",
            {
                "name": reproduction.name, "quick": quick, "settings": list(settings),
                "machine": record.machine, "commit": record.commit, "notes": list(reproduction.notes),
                "claims": [claim(records) for claim in reproduction.claims], "rows": reproduction.summary(records),
            },
        )  # fmt: skip
    return records


def metric(runs: Sequence[Record], key: str) -> list[float]:
    return [float(value) for run in runs if (value := run.metrics.get(key)) is not None]


def spread(numbers: Sequence[float], scale: float = 100) -> str:
    if not numbers:
        return "-"
    deviation = f" ± {scale * statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{scale * statistics.fmean(numbers):.2f}{deviation}"


def paired(first: Sequence[float], second: Sequence[float]) -> str:
    """The mean difference of pairs with its 95% t interval and p value, in words."""
    differences = [100 * (a - b) for a, b in zip(first, second, strict=False)]
    mean = statistics.fmean(differences)
    if len(differences) < 2 or statistics.stdev(differences) == 0:
        return f"{mean:+.2f} points ({len(differences)} pair)"
    test = scipy.stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval()
    return f"{mean:+.2f} points, 95% [{low:+.2f}, {high:+.2f}], p = {test.pvalue:.2g}, {len(differences)} pairs"
