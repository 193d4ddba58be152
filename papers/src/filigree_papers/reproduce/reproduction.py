"""The two kinds of experiments: recipes that are trained, and figures that a function computes."""

from __future__ import annotations

import functools
import json
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rich import box
from rich.table import Table

from filigree.io.storage import write_json
from filigree.recipes import Recipe, RecipeError, load, run
from filigree.report import Chart, cell_text, write_computed, write_report
from filigree.train import Record
from filigree_papers.reproduce.bars import Bars
from filigree_papers.reproduce.experiment import Asked, Experiment, Pair, Rows
from filigree_papers.reproduce.findings import Finding, figure
from filigree_papers.reproduce.provenance import digest, source

Records = dict[str, dict[str, list[Record]]]  # case -> method -> the runs

_load = functools.lru_cache(maxsize=None)(load)  # a listing asks for each recipe many times

FIGURES = (
    "test_accuracy", "val_accuracy", "final_train_accuracy", "train_seconds", "trained_test_accuracy",
    "compressed_test_accuracy", "finetune_epochs", "escape_epoch",
)  # fmt: skip


@dataclass(frozen=True)
class Reproduction(Experiment):
    """A published experiment that a recipe trains.

    Attributes:
        recipe: all its cases share it. cases: name -> settings (`model.hidden=[64]`) of each. printed: case -> method
            -> figure -> number, test accuracies in [0, 1]; `where` is their place in the document. quick: settings of
            a short run, which says only that all works. claims: each looks at the records for findings.
    """

    name: str
    about: str
    recipe: str
    cases: dict[str, list[str]]
    printed: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    where: str = ""
    quick: list[str] = field(default_factory=list)
    claims: Sequence[Callable[[Records], list[Finding]]] = ()
    notes: Sequence[str] = ()
    long: bool = False
    resumes: ClassVar[bool] = True

    def recipe_of(self, case: str, quick: bool = False, settings: Sequence[str] = ()) -> Recipe:
        made = _load(self.recipe, (*self.cases[case], *(self.quick if quick else []), *settings))
        return made.model_copy(update={"name": f"{self.name} {case}" if len(self.cases) > 1 else self.name})

    def _recipe(self, case: str, asked: Asked) -> Recipe:
        return self.recipe_of(case, asked.quick, asked.settings)

    def seeds_of(self, case: str, asked: Asked) -> Sequence[int]:
        return self._recipe(case, asked).runs() if asked.seeds is None else asked.seeds

    def config_of(self, case: str, seed: int, asked: Asked) -> str:
        recipe = self._recipe(case, asked)
        plain = {method: recipe.plain(method) | {"about": "", "published": {}} for method in recipe.methods}
        return digest([plain, recipe.search, seed, asked.quick])

    def needs(self, quick: bool) -> list[str]:
        return sorted({self.recipe_of(case, quick).data.name for case in self.cases})

    def _folders(self, out: Path, case: str, seed: int, asked: Asked) -> list[Path]:
        return [out / case / f"{method}-{seed}" for method in self._recipe(case, asked).methods]

    def is_there(self, out: Path, case: str, seed: int, asked: Asked) -> bool:
        try:
            records = [Record.load(folder) for folder in self._folders(out, case, seed, asked)]
        except (FileNotFoundError, ValueError):
            return False
        return all(record.finished and record.cost for record in records)

    def perform(self, out: Path, case: str, seed: int, asked: Asked, bars: Bars) -> None:
        run(self._recipe(case, asked), out / case, runs=[seed], resume=True, progress=bars)

    def discard(self, out: Path, case: str, seed: int, asked: Asked) -> None:
        for folder in self._folders(out, case, seed, asked):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(out / case / "search", ignore_errors=True)

    def read(self, out: Path, pairs: Sequence[Pair], asked: Asked) -> Records:
        records: Records = {}
        for case, seed in pairs:
            for folder in self._folders(out, case, seed, asked):
                record = Record.load(folder)
                records.setdefault(case, {}).setdefault(record.method, []).append(record)
        return records

    def findings(self, found: Records) -> list[Finding]:
        made = []
        for case, methods in self.printed.items():
            for method, figures in methods.items():
                ours = metric(found.get(case, {}).get(method, []), "test_accuracy", 100)
                if ours and "test" in figures:
                    what = f"{case} {method}, test accuracy in %"
                    made.append(figure(self.where, what, 100 * figures["test"], ours, percent=True))
        return [*made, *(finding for claim in self.claims for finding in claim(found))]

    def table(self, found: Records) -> Table:
        """Our figures (mean over runs and standard deviation) with the printed ones in brackets."""
        table = Table(title=f"{self.name}: test accuracy in %, \\[printed]", title_justify="left", box=box.SIMPLE_HEAD)
        methods = list(dict.fromkeys(method for runs in found.values() for method in runs))
        for heading in ("", *methods):
            table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
        for case, runs in found.items():
            cells = []
            for method in methods:
                printed = self.printed.get(case, {}).get(method, {}).get("test")
                ours = mean_and_deviation(metric(runs.get(method, []), "test_accuracy", 100))
                cells.append(ours + ("" if printed is None else f"\n\\[{100 * printed:.2f}]"))
            table.add_row(case, *cells)
        return table

    def rows(self, found: Records) -> Rows:
        """A row a case and method: means and deviations of what was measured, and what was printed."""
        rows = []
        for case, runs in found.items():
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

    def write_page(self, out: Path, found: Records, lines: Sequence[str]) -> None:
        write_report([out], out / "report.html")


@dataclass(frozen=True)
class Computation(Experiment):
    """A published figure that is computed, not trained by a recipe.

    Attributes:
        compute: case, seed, whether it is to be quick -> rows: plain dicts, floats the figures, all else what they
            belong to. cases, seeds (of all cases, or of each; a quick run has the first alone). data: the names of the
            data it needs. charts: of the page. claims: each looks at all rows, in the order of cases and seeds, for
            findings.
    """

    name: str
    about: str
    compute: Callable[[str, int, bool], Rows]
    cases: Sequence[str]
    seeds: Sequence[int] | Mapping[str, Sequence[int]] = (0,)
    data: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    claims: Sequence[Callable[[Rows], list[Finding]]] = ()
    notes: Sequence[str] = ()
    long: bool = False
    resumes: ClassVar[bool] = False

    def pairs(self, asked: Asked) -> list[Pair]:
        if asked.settings:
            raise RecipeError(f"--set {asked.settings[0]}: {self.name} is computed; it has no recipe to set keys of.")
        return super().pairs(asked)

    def seeds_of(self, case: str, asked: Asked) -> Sequence[int]:
        own = self.seeds[case] if isinstance(self.seeds, Mapping) else self.seeds
        return asked.seeds if asked.seeds is not None else own[:1] if asked.quick else own

    def config_of(self, case: str, seed: int, asked: Asked) -> str:
        return digest([source(self.compute), case, seed, asked.quick])

    def needs(self, quick: bool) -> list[str]:
        return list(self.data)

    def _file(self, out: Path, case: str, seed: int) -> Path:
        return out / f"{case}.{seed}.json"

    def is_there(self, out: Path, case: str, seed: int, asked: Asked) -> bool:
        return self._file(out, case, seed).is_file()

    def perform(self, out: Path, case: str, seed: int, asked: Asked, bars: Bars) -> None:
        write_json(self._file(out, case, seed), self.compute(case, seed, asked.quick))

    def discard(self, out: Path, case: str, seed: int, asked: Asked) -> None:
        self._file(out, case, seed).unlink(missing_ok=True)

    def read(self, out: Path, pairs: Sequence[Pair], asked: Asked) -> Rows:
        return [row for pair in pairs for row in json.loads(self._file(out, *pair).read_text())]

    def findings(self, found: Rows) -> list[Finding]:
        return [finding for claim in self.claims for finding in claim(found)]

    def table(self, found: Rows) -> Table:
        rows = aggregate(found)
        headings = list(dict.fromkeys(key for row in rows for key in row))
        table = Table(*headings, title=self.name, title_justify="left", box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*(cell_text(row.get(key)) for key in headings))
        return table

    def rows(self, found: Rows) -> Rows:
        return aggregate(found)

    def write_page(self, out: Path, found: Rows, lines: Sequence[str]) -> None:
        write_computed(out / "report.html", self.name, self.about, aggregate(found), self.charts, lines)


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


def metric(runs: Sequence[Record], key: str, scale: float = 1) -> list[float]:
    return [scale * float(value) for run in runs if (value := run.metrics.get(key)) is not None]


def mean_and_deviation(numbers: Sequence[float]) -> str:
    if not numbers:
        return "-"
    deviation = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.2f}{deviation}"
