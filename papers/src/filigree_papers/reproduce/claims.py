"""Claims that several documents make: a method's figure beside the printed one, one method before another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from filigree.data import overlap
from filigree.train import Record
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.findings import (
    Finding,
    Rule,
    Verdict,
    claim,
    difference,
    equal,
    figure,
    judged,
    positive,
)
from filigree_papers.reproduce.reproduction import Records

OfRows = Callable[[Rows], list[Finding]]
Pairs = Sequence[tuple[str, str]]  # methods: the first comes before the second
RunFigure = Callable[[Record], float | None]


def ends(rows: Rows, name: str, key: str = "activation") -> dict[str, list[float | None]]:
    """For each arm the figure `name` at the last step or epoch of each run, in the order of the seeds.

    None: the run diverged. It ends without a number, or its training loss is none.
    """

    def diverged(row: Mapping[str, Any]) -> bool:
        return any(value is None for key, value in row.items() if key.startswith("training"))

    figures: dict[str, list[float | None]] = {}
    for arm in dict.fromkeys(row[key] for row in rows):
        own = [row for row in rows if row[key] == arm and name in row]
        steps = [str(row.get("step", row.get("epoch", "0"))) for row in own]
        end = max(steps, key=float, default="0")
        last = [row for row, step in zip(own, steps, strict=True) if step == end]
        figures[arm] = [None if diverged(row) else row[name] for row in last]
    return figures


def beside(where: str, name: str, printed: Mapping[str, float], key: str = "activation") -> OfRows:
    """Findings on the arms whose figure at the end of training is printed."""

    def findings(rows: Rows) -> list[Finding]:
        ours = {arm: [value for value in runs if value is not None] for arm, runs in ends(rows, name, key).items()}
        return [
            figure(where, f"{arm}, {name}", number, ours[arm], percent="%" in name)
            for arm, number in printed.items()
            if ours.get(arm)
        ]

    return findings


def before(
    where: str,
    says: str,
    name: str,
    pairs: Pairs,
    key: str = "activation",
    lower: bool = False,
    alike: Pairs = (),
    within: float = 1.0,
) -> OfRows:
    """A claim that the first of each pair is better at the end of training, and that those of `alike` are about equal.

    Args:
        name: the figure. lower: the smaller one is better. within: the margin of about equal.
    """

    def findings(rows: Rows) -> list[Finding]:
        by_arm = ends(rows, name, key)
        ours = {arm: {run: v for run, v in enumerate(runs) if v is not None} for arm, runs in by_arm.items()}
        sign, unit = -1 if lower else 1, f" {name}"
        shown = compared(ours, pairs, sign, unit=unit) | compared(ours, alike, rule=equal(within), unit=unit)
        for arm in dict.fromkeys(arm for pair in (*pairs, *alike) for arm in pair):
            runs = by_arm.get(arm, [])
            if None in runs:
                shown[f"{arm} diverged in {runs.count(None)} of {len(runs)} runs"] = "not"
        return [claim(where, says, shown)] if shown else []

    return findings


def compared(
    ours: Mapping[str, Mapping[Any, float]], pairs: Pairs, sign: int = 1,
    rule: Rule = positive, scale: float = 1, unit: str = "", folds: float = 0.0,
) -> dict[str, Verdict]:  # fmt: skip
    """For each pair of arms the paired differences, first minus second, in words, with the verdict by `rule`.

    Args:
        ours: arm -> run -> figure. Pairs without a run in common are left out.
        sign: -1 where smaller is better.
        folds: the overlap of a cross-validation, see `findings`.
    """
    parts: dict[str, Verdict] = {}
    for first, second in pairs:
        runs = [run for run in ours.get(first, {}) if run in ours.get(second, {})]
        apart = [scale * (ours[first][run] - ours[second][run]) for run in runs]
        if apart:
            text = f"{first} - {second} {difference(apart, unit, folds)}"
            parts |= judged(text, rule, [sign * value for value in apart], folds)
    return parts


def by_run(records: Records, of: RunFigure) -> dict[str, dict[tuple[str, int], float]]:
    """Method -> case and seed -> figure."""
    figures: dict[str, dict[tuple[str, int], float]] = {}
    for case, methods in records.items():
        for method, runs in methods.items():
            for run in runs:
                if (value := of(run)) is not None:
                    figures.setdefault(method, {})[case, run.seed] = value
    return figures


def ratios(figures: Mapping[str, Mapping[Any, float]], method: str, base: str) -> list[float]:
    """The figures of a method as shares of those of `base`, over the runs that both have."""
    ours, theirs = figures.get(method, {}), figures.get(base, {})
    return [ours[run] / theirs[run] for run in sorted(ours.keys() & theirs.keys())]


def folds_of(records: Records) -> float:
    """`filigree.data.overlap` of the runs."""
    runs = next((runs for methods in records.values() for runs in methods.values() if runs), [])
    return overlap(runs[0].config.get("data", {})) if runs else 0.0


def test_accuracy(run: Record) -> float | None:
    """The test accuracy in percent."""
    value = run.metrics.get("test_accuracy")
    return None if value is None else 100 * float(value)


def train_seconds(run: Record) -> float | None:
    return run.metrics.get("train_seconds")


def cost(key: str) -> RunFigure:
    """The median of a measured time, in ms."""
    return lambda run: run.cost[key]["median"] if key in run.cost else None
