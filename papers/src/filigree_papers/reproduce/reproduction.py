"""The two kinds of experiments: recipes that are trained, and figures that a function computes."""

from __future__ import annotations

import functools
import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rich import box
from rich.table import Table
from torch.optim.optimizer import register_optimizer_step_pre_hook

from filigree.io.storage import write_json
from filigree.recipes import Recipe, RecipeError, load, run
from filigree.report import Chart, cell_text, write_computed, write_report
from filigree.train import Record
from filigree_papers.reproduce.bars import Bars
from filigree_papers.reproduce.experiment import CaseSeed, Checked, Experiment, Request, Rows
from filigree_papers.reproduce.findings import Finding, figure
from filigree_papers.reproduce.provenance import digest, source
from filigree_papers.reproduce.steps import first_evaluation

Records = dict[str, dict[str, list[Record]]]  # case -> method -> the runs

_load = functools.lru_cache(maxsize=None)(load)  # a listing asks for each recipe many times

ONE_RUN, FIRST_EPOCH, FIRST_EVALUATION = "one run", "its first epoch", "its first evaluation"
EARLY = ("train_loss", "val_accuracy", "test_accuracy")  # of the first epoch, for checks
FIGURES = (
    "test_accuracy", "val_accuracy", "final_train_accuracy", "train_seconds", "trained_test_accuracy",
    "compressed_test_accuracy", "finetune_epochs", "escape_epoch",
)  # fmt: skip


@dataclass(frozen=True)
class Reproduction(Experiment):
    """A published experiment that a recipe trains.

    Attributes:
        recipe: the recipe that all cases share.
        cases: name -> settings (`model.hidden=[64]`) of each.
        printed: case -> method -> figure -> number, test accuracies in [0, 1]; `where` is their place in the document.
        quick: settings of a short run, which only shows that all works.
        claims: functions from the records to findings.
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
        recipe = _load(self.recipe, (*self.cases[case], *(self.quick if quick else []), *settings))
        return recipe.model_copy(update={"name": f"{self.name} {case}" if len(self.cases) > 1 else self.name})

    def _recipe(self, case: str, request: Request) -> Recipe:
        return self.recipe_of(case, request.quick, request.settings)

    def seeds_of(self, case: str, request: Request) -> Sequence[int]:
        return self._recipe(case, request).runs() if request.seeds is None else request.seeds

    def config_of(self, case: str, seed: int, request: Request) -> str:
        recipe = self._recipe(case, request)
        plain = {method: recipe.plain(method) | {"about": "", "published": {}} for method in recipe.methods}
        return digest([plain, recipe.search, seed, request.quick])

    def needs(self, quick: bool) -> list[str]:
        return sorted({self.recipe_of(case, quick).data.name for case in self.cases})

    def _folders(self, out: Path, case: str, seed: int, request: Request) -> list[Path]:
        return [out / case / f"{method}-{seed}" for method in self._recipe(case, request).methods]

    def is_there(self, out: Path, case: str, seed: int, request: Request) -> bool:
        try:
            records = [Record.load(folder) for folder in self._folders(out, case, seed, request)]
        except (FileNotFoundError, ValueError):
            return False
        return all(record.finished and ("batch_ms" in record.cost or not request.timed) for record in records)

    def perform(self, out: Path, case: str, seed: int, request: Request, bars: Bars) -> None:
        recipe = self._recipe(case, request)
        run(recipe, out / case, runs=[seed], resume=True, progress=bars, timed=request.timed)

    def discard(self, out: Path, case: str, seed: int, request: Request) -> None:
        for folder in self._folders(out, case, seed, request):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(out / case / "search", ignore_errors=True)

    def read(self, out: Path, pairs: Sequence[CaseSeed], request: Request) -> Records:
        records: Records = {}
        for case, seed in pairs:
            for folder in self._folders(out, case, seed, request):
                record = Record.load(folder)
                records.setdefault(case, {}).setdefault(record.method, []).append(record)
        return records

    def findings(self, results: Records) -> list[Finding]:
        findings = []
        for case, methods in self.printed.items():
            for method, figures in methods.items():
                ours = metric(results.get(case, {}).get(method, []), "test_accuracy", 100)
                if ours and "test" in figures:
                    what = f"{case} {method}, test accuracy in %"
                    findings.append(figure(self.where, what, 100 * figures["test"], ours, percent=True))
        return [*findings, *(finding for claim in self.claims for finding in claim(results))]

    def table(self, results: Records) -> Table:
        """Our figures (mean over runs and standard deviation) with the printed ones in brackets."""
        table = Table(title=f"{self.name}: test accuracy in %, \\[printed]", title_justify="left", box=box.SIMPLE_HEAD)
        methods = list(dict.fromkeys(method for runs in results.values() for method in runs))
        for heading in ("", *methods):
            table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
        for case, runs in results.items():
            cells = []
            for method in methods:
                printed = self.printed.get(case, {}).get(method, {}).get("test")
                ours = mean_and_deviation(metric(runs.get(method, []), "test_accuracy", 100))
                cells.append(ours + ("" if printed is None else f"\n\\[{100 * printed:.2f}]"))
            table.add_row(case, *cells)
        return table

    def rows(self, results: Records) -> Rows:
        """A row a case and method: means and deviations of what was measured, and what was printed."""
        rows = []
        for case, runs in results.items():
            for method, records in runs.items():
                row: dict[str, Any] = {"case": case, "method": method, "runs": len(records)}
                for key in FIGURES:
                    numbers = metric(records, key)
                    if numbers:
                        row[key] = statistics.fmean(numbers)
                        row[f"{key}_deviation"] = statistics.stdev(numbers) if len(numbers) > 1 else None
                for key in ("train_step_ms", "backward_ms"):
                    times = [r.cost[key]["median"] for r in records if key in r.cost]
                    row[key] = statistics.median(times) if times else None
                row |= {key: records[0].cost.get(key) for key in ("parameters", "macs_forward")}
                row["lr"] = records[0].config.get("training", {}).get("lr")
                row["first epoch"] = _first_epoch(records)
                row["printed"] = self.printed.get(case, {}).get(method)
                rows.append(row)
        return rows

    def checked(self, rows: Rows) -> tuple[Checked, str]:
        early = {
            f"{row['case']} {row['method']}, {key} of the first epoch": (mean, deviation)
            for row in rows
            for key, (mean, deviation) in (row.get("first epoch") or {}).items()
        }
        if early:
            return early, FIRST_EPOCH
        kept = [key for key in FIGURES if not key.endswith("seconds")]
        return {
            f"{row['case']} {row['method']}, {key}": (row[key], row.get(f"{key}_deviation"))
            for row in rows for key in kept if key in row
        }, ONE_RUN  # fmt: skip

    def make_again(
        self, out: Path, case: str, seed: int, request: Request, part: str, bars: Bars, recorded: Rows
    ) -> Rows:
        recipe = self._recipe(case, request)
        if part == ONE_RUN:
            run(recipe, out / case, runs=[seed], progress=bars, timed=False)
            return self.rows(self.read(out, [(case, seed)], request))
        recipe = as_chosen(recipe, [row for row in recorded if row["case"] == case])
        runs: dict[str, list[Record]] = {}
        for method, arm in recipe.methods.items():
            if arm.after is None:
                with suppress(EpochEnded), end_of_epoch(out / case / f"{method}-{seed}"):
                    run(recipe, out / case, methods=[method], runs=[seed], progress=bars, timed=False)
                runs[method] = [Record.load(out / case / f"{method}-{seed}")]
        return [
            {"case": case, "method": method, "first epoch": _first_epoch(records)} for method, records in runs.items()
        ]

    def write_page(self, out: Path, results: Records, lines: Sequence[str]) -> None:
        write_report([out], out / "report.html")


@dataclass(frozen=True)
class Computation(Experiment):
    """A published figure that is computed, not trained by a recipe.

    Attributes:
        compute: a function of case, seed and whether it is to be quick, to rows: plain dicts whose floats are figures;
            all else says what these belong to.
        seeds: of all cases, or of each; a quick run has the first seed alone.
        data: the names of the data it needs.
        charts: what the page shows.
        claims: functions from all rows, in the order of cases and seeds, to findings.
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

    def pairs(self, request: Request) -> list[CaseSeed]:
        if request.settings:
            raise RecipeError(f"--set {request.settings[0]}: {self.name} is computed; it has no recipe to set keys of.")
        return super().pairs(request)

    def seeds_of(self, case: str, request: Request) -> Sequence[int]:
        own = self.seeds[case] if isinstance(self.seeds, Mapping) else self.seeds
        return request.seeds if request.seeds is not None else own[:1] if request.quick else own

    def config_of(self, case: str, seed: int, request: Request) -> str:
        return digest([source(self.compute), case, seed, request.quick])

    def needs(self, quick: bool) -> list[str]:
        return list(self.data)

    def _file(self, out: Path, case: str, seed: int) -> Path:
        return out / f"{case}.{seed}.json"

    def is_there(self, out: Path, case: str, seed: int, request: Request) -> bool:
        return self._file(out, case, seed).is_file()

    def perform(self, out: Path, case: str, seed: int, request: Request, bars: Bars) -> None:
        write_json(self._file(out, case, seed), self.compute(case, seed, request.quick))

    def discard(self, out: Path, case: str, seed: int, request: Request) -> None:
        self._file(out, case, seed).unlink(missing_ok=True)

    def read(self, out: Path, pairs: Sequence[CaseSeed], request: Request) -> Rows:
        return [row for pair in pairs for row in json.loads(self._file(out, *pair).read_text())]

    def findings(self, results: Rows) -> list[Finding]:
        return [finding for claim in self.claims for finding in claim(results)]

    def table(self, results: Rows) -> Table:
        rows = aggregate(results)
        headings = list(dict.fromkeys(key for row in rows for key in row))
        table = Table(*headings, title=self.name, title_justify="left", box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*(cell_text(row.get(key)) for key in headings))
        return table

    def rows(self, results: Rows) -> Rows:
        return aggregate(results)

    def checked(self, rows: Rows) -> tuple[Checked, str]:
        by_steps = any("step" in row for row in rows)
        first = min((str(row["step"]) for row in rows if "step" in row), key=float, default="")
        figures: Checked = {}
        for row in rows:
            if by_steps and row.get("step") != first:
                continue
            numbers = {key: pair for key, value in row.items() if (pair := _pair(value)) is not None}
            label = " ".join(f"{key}={value}" for key, value in row.items() if key not in numbers)
            figures |= {f"{label}, {key}": pair for key, pair in numbers.items() if not TIMES & set(key.split())}
        return figures, FIRST_EVALUATION if by_steps else ONE_RUN

    def make_again(
        self, out: Path, case: str, seed: int, request: Request, part: str, bars: Bars, recorded: Rows
    ) -> Rows:
        with first_evaluation() if part == FIRST_EVALUATION else nullcontext():
            return self.compute(case, seed, request.quick)

    def write_page(self, out: Path, results: Rows, lines: Sequence[str]) -> None:
        write_computed(out / "report.html", self.name, self.about, aggregate(results), self.charts, lines)


TIMES = {
    "s",
    "ms",
    "seconds",
    "milliseconds",
    "time",
    "times",
}  # words in the names of figures that are no matter of the code


def _pair(value: Any) -> tuple[float, float | None] | None:
    """Mean and deviation of a figure in a row, None of what is none."""
    if isinstance(value, float):
        return (value, None) if math.isfinite(value) else None
    if isinstance(value, list) and len(value) == 2 and all(isinstance(number, float) for number in value):
        return value[0], value[1]
    return None


def _first_epoch(records: Sequence[Record]) -> dict[str, list[float | None]] | None:
    """Mean and deviation of the first epoch's figures, where all runs were trained."""
    firsts = [record.history[0] for record in records if record.history]
    if len(firsts) < len(records):
        return None
    figures: dict[str, list[float | None]] = {}
    for key in EARLY:
        numbers = [float(value) for first in firsts if (value := first.get(key)) is not None]
        if len(numbers) == len(firsts):
            figures[key] = [statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None]
    return figures


def as_chosen(recipe: Recipe, recorded: Rows) -> Recipe:
    """The recipe with the settings that its search has chosen for each method, in place of the search."""
    chosen = {row["method"]: {key: row[key] for key in recipe.search if row.get(key) is not None} for row in recorded}
    methods = {
        name: arm.model_copy(update={"training": arm.training | chosen.get(name, {})})
        for name, arm in recipe.methods.items()
    }
    return recipe.model_copy(update={"search": {}, "methods": methods})


class EpochEnded(Exception):
    """The first epoch of a run is over; its record has its figures."""


@contextmanager
def end_of_epoch(folder: Path) -> Iterator[None]:
    """`EpochEnded` at the first step of an optimizer after the record in the folder has an epoch."""

    def look(*_: Any) -> None:
        with suppress(FileNotFoundError, ValueError):
            if Record.load(folder).history:
                raise EpochEnded

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def aggregate(rows: Rows) -> Rows:
    """Rows that differ in floats only become one: of each float `[mean, standard deviation]`, or itself if alone."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple((k, v) for k, v in row.items() if not isinstance(v, float)), []).append(row)
    aggregated = []
    for same in groups.values():
        row = dict(same[0])
        for key, value in row.items():
            if isinstance(value, float) and len(same) > 1:
                numbers = [r[key] for r in same]
                row[key] = [statistics.fmean(numbers), statistics.stdev(numbers)]
        aggregated.append(row)
    return aggregated


def metric(runs: Sequence[Record], key: str, scale: float = 1) -> list[float]:
    return [scale * float(value) for run in runs if (value := run.metrics.get(key)) is not None]


def mean_and_deviation(numbers: Sequence[float]) -> str:
    if not numbers:
        return "-"
    deviation = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.2f}{deviation}"
