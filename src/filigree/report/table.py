"""Records as a table: means over runs, their spread, and each cost as a ratio to dense."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from filigree.config import visible
from filigree.data import mean_interval, overlap, paired_interval
from filigree.train.history import score_of

RecordLike = Mapping[str, Any]

# key, heading, how to write it
COSTS = [
    ("test_perplexity", "perplexity", "{:.4g}"),
    ("parameters", "parameters", "{:,.0f}"),
    ("nonzeros", "nonzeros", "{:,.0f}"),
    ("bytes_disk", "bytes on disk", "{:,.0f}"),
    ("train_step_ms", "ms / step", "{:.3g}"),
    ("backward_ms", "ms / backward", "{:.3g}"),
    ("single_ms", "ms / sample", "{:.3g}"),
    ("train_seconds", "training s", "{:.3g}"),
    ("train_joules", "training J", "{:.3g}"),
    ("batch_ms", "ms / batch", "{:.3g}"),
    ("bytes_memory", "bytes in memory", "{:,.0f}"),
    ("macs_forward", "MACs forward", "{:,.0f}"),
]
COMPARISON = "filigree-comparison/1"
ORDER = ["dense", "Static", "SET", "LDV", "OSV", "EXD"]  # of rows; others follow as they come
_MEASURED = ("train_seconds", "train_joules", "test_perplexity")  # in a record's metrics; the others are in its cost
_LEFT_OUT = ("bytes_memory", "macs_forward", "backward_ms", "nonzeros")  # of the terminal's table


@dataclass(frozen=True)
class Row:
    """One method of a recipe: test accuracy over its runs, and costs with their ratio to dense (None: no dense arm).

    Of a quantity, `score` is "r2", and R2 stands in place of the accuracy.
    """

    recipe: str
    method: str
    runs: int
    accuracy: float | None
    deviation: float | None  # standard deviation over the runs
    interval: float | None  # half the 95% t interval of the mean, corrected where runs share training samples
    against_dense: tuple[float, float, float] | None  # paired difference in accuracy: mean, low, high at 95%
    costs: dict[str, float | None]
    ratios: dict[str, float | None]
    spreads: dict[str, tuple[float, float]]  # 10th and 90th percentile of timings, medians over the runs
    score: str = "accuracy"

    def text(self, value: float, form: str = "") -> str:
        """A score, or a difference of two, as it is written: an accuracy in percent, R2 as it is."""
        return f"{100 * value:{form}.2f}" if self.score == "accuracy" else f"{value:{form}.3f}"


def refuse_incomparable(records: Sequence[RecordLike], command: str = "compare") -> None:
    """Raise `ValueError` where runs of one recipe are of different data, as their means say nothing, and where a run
    comes twice, as it would count as two independent ones; trials of a sweep may have the same settings."""
    seen: dict[str, tuple[Any, Any]] = {}
    runs = set()
    for record in records:
        config, recipe = record.get("config", {}), record["recipe"]
        data = config.get("data", {})
        identity = data.get("sha256") or data.get("name")
        first = seen.setdefault(recipe, (identity, data.get("name")))
        if first[0] != identity:
            raise ValueError(
                f"{command}: runs of {recipe!r} are of different data, {first[1]} and {data.get('name')}. "
                "Compare them apart."
            )
        run = recipe, record["method"], record["seed"]
        if run in runs and not config.get("sweep"):
            raise ValueError(f"{command}: {run[0]}: {run[1]} with seed {run[2]} is there twice. Compare them apart.")
        runs.add(run)


def by_recipe(records: Sequence[RecordLike]) -> dict[str, dict[str, list[RecordLike]]]:
    """Records by recipe and method: dense first, then the thesis's methods, then others as they come."""
    groups: dict[str, dict[str, list[RecordLike]]] = {}
    for record in sorted(records, key=lambda r: ORDER.index(r["method"]) if r["method"] in ORDER else len(ORDER)):
        groups.setdefault(record["recipe"], {}).setdefault(record["method"], []).append(record)
    return groups


def summary_table(records: Sequence[RecordLike]) -> list[Row]:
    """A row a method of each recipe; every figure is the mean (of timings the median) over its runs."""
    rows = []
    for recipe, methods in by_recipe(records).items():
        costs = {method: {key: _cost(runs, key) for key, *_ in COSTS} for method, runs in methods.items()}
        for method, runs in methods.items():
            scores = [score for r in runs if (score := score_of(r["metrics"], "test")) is not None]
            accuracies = [value for _, value in scores]
            deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else None
            share = overlap(runs[0].get("config", {}).get("data", {}))
            rows.append(
                Row(
                    recipe, method, len(runs), statistics.fmean(accuracies) if accuracies else None, deviation,
                    _half_interval(accuracies, share),
                    None if method == "dense" else _paired(runs, methods.get("dense", []), share), costs[method],
                    {key: _ratio(value, costs.get("dense", {}).get(key)) for key, value in costs[method].items()},
                    {key: spread for key, *_ in COSTS if (spread := _spread(runs, key)) is not None},
                    scores[0][0] if scores else "accuracy",
                )
            )  # fmt: skip
    return rows


def known_costs(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Those of `COSTS` that a row has."""
    return [cost for cost in COSTS if any(row.costs[cost[0]] is not None for row in rows)]


def summary(records: Sequence[RecordLike]) -> dict[str, Any]:
    """The rows of `summary_table`, with where and when they were measured, as plain data for a JSON file."""
    first = records[0]
    return {
        "format": COMPARISON,
        "name": first["recipe"],
        "about": first["config"].get("about", "").strip(),
        "finished": max(record["finished"] or "" for record in records),
        **{key: first[key] for key in ("machine", "commit", "versions")},
        "notes": list(dict.fromkeys(note for record in records for note in record["notes"])),
        "rows": [asdict(row) for row in summary_table(records)],
    }


def console_table(records: Sequence[RecordLike]) -> Table:
    """The table for a terminal: figures, and under each its ratio to dense."""
    rows = summary_table(records)
    shown = [(key, heading.replace(" ", "\n", 1)) for key, heading, _ in known_costs(rows) if key not in _LEFT_OUT]
    table = Table(
        title="± the 95% interval of the mean; below each cost its ratio to dense",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    several = len({r["recipe"] for r in records}) > 1
    for heading in (["recipe"] if several else []) + ["method"]:
        table.add_column(heading, style="bold", no_wrap=True)
    for heading in (score_heading(rows).replace(" ", "\n", 1).replace(",", ""), *(heading for _, heading in shown)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [_figure(row.costs[key], row.ratios[key]) for key, _ in shown]
        names = ([row.recipe] if several else []) + [row.method]
        interval = "" if row.interval is None else f"\n± {row.text(row.interval)}"
        accuracy = "-" if row.accuracy is None else f"{row.text(row.accuracy)}{interval}"
        table.add_row(*map(Text, [*map(visible, names), accuracy, *cells]))
    return table


def score_heading(rows: Sequence[Row]) -> str:
    """What the scores of rows are called: "test accuracy, %", "test R2", or both."""
    kinds = {row.score for row in rows}
    return "test R2" if kinds == {"r2"} else "test accuracy, %" if "r2" not in kinds else "test accuracy, % (or R2)"


def accuracy_text(row: Row) -> str:
    if row.accuracy is None:
        return "-"
    spread = "" if row.deviation is None else f" ± {row.text(row.deviation)} ({row.runs})"
    return f"{row.text(row.accuracy)}{spread}"


def _figure(value: float | None, ratio: float | None) -> str:
    if value is None:
        return "-"
    return short(value) + (f"\n({ratio_text(ratio)})" if ratio is not None else "")


def short(value: float) -> str:
    """A number in three digits: 0.156, 12.3, 876k, 2.08M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if float(f"{value:.3g}") >= size:  # 999,600 is 1M
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def commit_text(commit: str | None, dirty: bool = False) -> str:
    """ "commit 1a2b3c4d5e (with changes)", or that none is known, as outside a git repository."""
    return f"commit {commit[:10]}{' (with changes)' if dirty else ''}" if commit else "no commit known"


def ratio_text(ratio: float) -> str:
    """A ratio to dense: "0.045x", "1x", "12x"."""
    return f"{ratio:.2g}x" if ratio < 10 else f"{ratio:.0f}x"


def figure_of(run: RecordLike, key: str) -> float | None:
    """A cost of one run; of a timing the median."""
    value = run["metrics" if key in _MEASURED else "cost"].get(key)
    value = value["median"] if isinstance(value, Mapping) else value
    return None if value is None else float(value)


def _cost(runs: Sequence[RecordLike], key: str) -> float | None:
    values = []
    for run in runs:
        value = figure_of(run, key)
        if value is not None:
            values.append(value)
    if not values:
        return None
    return statistics.median(values) if key.endswith(("_ms", *_MEASURED)) else statistics.fmean(values)


def _spread(runs: Sequence[RecordLike], key: str) -> tuple[float, float] | None:
    timings = [run["cost"][key] for run in runs if isinstance(run["cost"].get(key), Mapping)]
    if not timings:
        return None
    return statistics.median(t["low"] for t in timings), statistics.median(t["high"] for t in timings)


def _ratio(value: float | None, dense: float | None) -> float | None:
    return value / dense if value is not None and dense else None


def _paired(runs: Sequence[RecordLike], dense: Sequence[RecordLike], share: float) -> tuple[float, float, float] | None:
    """The difference over the runs that both have."""
    theirs = {run["seed"]: score_of(run["metrics"], "test") for run in dense}
    pairs = [(score_of(run["metrics"], "test"), theirs.get(run["seed"])) for run in runs]
    known = [(a[1], b[1]) for a, b in pairs if a is not None and b is not None]
    if len(known) < 2:
        return None
    return paired_interval([a for a, _ in known], [b for _, b in known], share)


def _half_interval(accuracies: Sequence[float], share: float) -> float | None:
    if len(accuracies) < 2:
        return None
    mean, low, _ = mean_interval(accuracies, share)
    return mean - low
