"""What a reproduction is: recipes, the figures that were printed, and a table of both."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import scipy.stats
from rich import box
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from filigree.recipes import Recipe, RecipeError, load, run
from filigree.report import Chart, cell_text, write_computed, write_report
from filigree.storage import write_json
from filigree.train import Record, progress_columns

Records = dict[str, dict[str, list[Record]]]  # case -> method -> the runs
Rows = list[dict[str, Any]]


FIGURES = (
    "test_accuracy", "val_accuracy", "final_train_accuracy", "train_seconds", "trained_test_accuracy",
    "compressed_test_accuracy", "finetune_epochs",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What of a reproduction is asked for: by default all of it."""

    cases: Sequence[str] = ()
    seeds: Sequence[int] | None = None
    settings: Sequence[str] = ()
    quick: bool = False

    def choose(self, made: Reproduction | Computation) -> list[str]:
        if unknown := set(self.cases) - set(made.cases):
            raise RecipeError(f"--case {min(unknown)}: the cases of {made.name} are {', '.join(made.cases)}.")
        return list(self.cases or made.cases)


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

    def again(self, out: Path, asked: Asked, console: Console) -> tuple[Table, list[str]]:
        """Run what is missing in `out`, case by case; the table, and a line on each claim."""
        records: Records = {}
        for case in asked.choose(self):
            recipe = self.recipe_of(case, asked.quick, asked.settings)
            with Progress(*progress_columns(), console=console) as progress:
                folders = run(recipe, out / case, runs=asked.seeds, resume=True, progress=progress)
            for folder in folders:
                record = Record.load(folder)
                records.setdefault(case, {}).setdefault(record.method, []).append(record)
            lines = [*(claim(records) for claim in self.claims), *self.notes]
            write_json(
                out / "summary.json",
                {
                    "name": self.name, "quick": asked.quick, "settings": list(asked.settings),
                    "machine": record.machine, "commit": record.commit, "lines": lines, "rows": self.summary(records),
                },
            )  # fmt: skip
        write_report([out], out / "report.html")
        return self.table(records), lines

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
                for key in FIGURES:
                    numbers = metric(its, key)
                    if numbers:
                        row[key] = statistics.fmean(numbers)
                        row[f"{key}_deviation"] = statistics.stdev(numbers) if len(numbers) > 1 else None
                for key in ("train_step_ms", "backward_ms"):
                    times = [r.cost[key]["median"] for r in its if key in r.cost]
                    row[key] = statistics.median(times) if times else None
                row |= {key: its[0].cost.get(key) for key in ("parameters", "macs_forward")}
                row["printed"] = self.printed.get(case, {}).get(method)
                rows.append(row)
        return rows


@dataclass(frozen=True)
class Computation:
    """A published figure that is computed, not trained by a recipe.

    Attributes:
        compute: case, seed, whether it is to be quick -> rows: plain dicts, floats the figures, all else what they
            belong to. cases, seeds (of all cases, or of each): each pair is computed and
            kept on its own. charts: of the page.
        claims: all rows -> a line each.
    """

    name: str
    about: str
    compute: Callable[[str, int, bool], Rows]
    cases: Sequence[str]
    seeds: Sequence[int] | Mapping[str, Sequence[int]] = (0,)
    charts: Sequence[Chart] = ()
    claims: Sequence[Callable[[Rows], str]] = ()
    notes: Sequence[str] = ()

    def again(self, out: Path, asked: Asked, console: Console) -> tuple[Table, list[str]]:
        """Compute what is missing in `out`; the table, and a line on each claim."""
        if asked.settings:
            raise RecipeError(f"--set {asked.settings[0]}: {self.name} is computed; it has no recipe to set keys of.")
        record = Record.start(self.name)
        seeds = self.seeds if isinstance(self.seeds, Mapping) else dict.fromkeys(self.cases, self.seeds)
        pairs = [(case, seed) for case in asked.choose(self) for seed in asked.seeds or seeds[case]]
        out.mkdir(parents=True, exist_ok=True)
        rows: Rows = []
        for case, seed in track(pairs, self.name, console=console):
            file = out / f"{case}.{seed}.json"
            if not file.exists():
                write_json(file, self.compute(case, seed, asked.quick))
            rows += json.loads(file.read_text())
        lines = [*(claim(rows) for claim in self.claims), *self.notes]
        summary = aggregate(rows)
        write_json(
            out / "summary.json",
            {
                "name": self.name, "quick": asked.quick, "machine": record.machine, "commit": record.commit,
                "seeds": sorted({seed for _, seed in pairs}), "lines": lines, "rows": summary,
            },
        )  # fmt: skip
        write_computed(out / "report.html", self.name, self.about, summary, self.charts, lines)
        headings = list(dict.fromkeys(key for row in summary for key in row))
        table = Table(*headings, title=self.name, title_justify="left", box=box.SIMPLE_HEAD)
        for row in summary:
            table.add_row(*(cell_text(row.get(key)) for key in headings))
        return table, lines


def aggregate(rows: Rows) -> Rows:
    """Rows that differ in floats only become one: of each float `[mean, standard deviation]`, or itself if alone."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple((k, v) for k, v in row.items() if not isinstance(v, float)), []).append(row)
    made = []
    for same in groups.values():
        row = dict(same[0])
        for key, value in row.items():
            if isinstance(value, float) and len(same) > 1:
                numbers = [r[key] for r in same]
                row[key] = [statistics.fmean(numbers), statistics.stdev(numbers)]
        made.append(row)
    return made


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
