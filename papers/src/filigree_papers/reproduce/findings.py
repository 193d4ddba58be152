"""Verdicts on printed figures and claims, by rules that are the same for all.

All rest on the 95% t interval of a mean over runs (seeds, folds, or networks), which a single run does not have:

- a printed **figure** is "reproduced" when it lies within the interval of ours, else "not"; within an interval that
  reaches further than a fifth of the figure to each side, it is "open": so few runs would agree with almost anything.
  Of a percentage p the fifth is of the smaller of p and 100 - p, which is the error; of a 0 the margin is 1;
- a figure of which ours were cut off at or below it is "open";
- a claim that a difference is **positive** is "reproduced" when its interval lies above 0, "not" when it lies below;
- a claim that two are **about equal** is "reproduced" when the interval of their difference holds 0 and stays within a
  stated margin, "not" when it does not hold 0;
- a claim of **at least** so much is "reproduced" when our mean is, "not" when the whole interval is less;
- a **count** is "reproduced" when it is the printed one, "partly" within 5% of it, else "not";
- what none of these decides, the figure of a single run, and one of a scaled experiment are "open";
  a count, an order of methods and a claim hold at the size they were made at;
- a claim of several parts is "reproduced" when all are, "partly" when some are, else "not" if one is not, or "open".

The folds of a repeated cross-validation share most of their training parts, so intervals over them are wider: `folds`
is the size of a test part to that of its training part, see `filigree.data.mean_interval`; 0 of other runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import scipy.stats

from filigree.data import mean_interval

Verdict = Literal["reproduced", "partly", "not", "open"]
Interval = tuple[float, float]

NEAR = 0.05  # of a printed count
WIDE = 0.2  # of a printed figure, or of what a percentage lacks to 100: half an interval that decides nothing
WIDE_AT_0 = 1.0  # where that is 0


@dataclass(frozen=True)
class Finding:
    """What came of a printed figure or claim.

    Attributes:
        where: its document and place, as in documents.yaml: "Moczulski 2019, Table 4.2".
        text: one sentence, with the numbers.
        printed, ours, difference, interval: of a figure; ours is a mean over runs, difference is ours minus printed,
            interval the 95% one of ours (None: a single run). counted: it is a count.
    """

    where: str
    verdict: Verdict
    text: str
    printed: float | None = None
    ours: float | None = None
    difference: float | None = None
    interval: Interval | None = None
    counted: bool = False

    def scaled(self) -> Finding:
        """As of an experiment that is smaller than the document's: a figure is open, all else stands."""
        if self.printed is None or self.counted:
            return self
        return replace(self, verdict="open", text=f"{self.text.removesuffix('.')}, scaled.")


def interval(numbers: Sequence[float], folds: float = 0.0) -> Interval | None:
    """The 95% t interval of the mean; None of a single number."""
    if len(numbers) < 2:
        return None
    return mean_interval(numbers, folds)[1:]


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim from those on its parts."""
    found = set(verdicts)
    if found == {"reproduced"}:
        return "reproduced"
    if found & {"reproduced", "partly"}:
        return "partly"
    return "not" if "not" in found else "open"


def positive(differences: Sequence[float], folds: float = 0.0) -> Verdict:
    if (its := interval(differences, folds)) is None:
        return "open"
    return "reproduced" if its[0] > 0 else "not" if its[1] < 0 else "open"


def equal(within: float) -> Callable[..., Verdict]:
    """The rule for differences that should be 0, with its margin."""

    def rule(differences: Sequence[float], folds: float = 0.0) -> Verdict:
        if (its := interval(differences, folds)) is None:
            return "open"
        if not its[0] <= 0 <= its[1]:
            return "not"
        return "reproduced" if max(-its[0], its[1]) <= within else "open"

    return rule


def at_least(numbers: Sequence[float], limit: float, folds: float = 0.0) -> Verdict:
    if (its := interval(numbers, folds)) is None:
        return "open"
    return "reproduced" if statistics.fmean(numbers) >= limit else "not" if its[1] < limit else "open"


def share(holds: Sequence[bool]) -> Verdict:
    """Of a property that every run has or has not."""
    return together("reproduced" if it else "not" for it in holds)


def figure(
    where: str, what: str, printed: float, ours: Sequence[float], percent: bool = False, cap: float = math.inf,
    folds: float = 0.0,
) -> Finding:  # fmt: skip
    """A printed figure beside ours, in the same unit.

    Args:
        percent: of a whole, so that 100 - printed is a figure too. cap: ours end there, reached or not.
    """
    its, mean = interval(ours, folds), statistics.fmean(ours)
    verdict: Verdict = "open"
    if its is not None and not (printed >= cap and max(ours) >= cap):
        margin = WIDE * (min(printed, 100 - printed) if percent else abs(printed)) or WIDE_AT_0
        wide = (its[1] - its[0]) / 2 > margin
        verdict = "not" if not its[0] <= printed <= its[1] else "open" if wide else "reproduced"
    apart = f"{'+' if mean >= printed else ''}{_number(mean - printed)}"
    text = f"{what}: printed {_number(printed)}, ours {spread(ours, folds)}, {apart}."
    return Finding(where, verdict, text, printed, mean, mean - printed, its)


def count(where: str, what: str, printed: float, ours: float, digits: int = 0) -> Finding:
    """A printed number of things that are counted, or a share of them with so many digits."""
    near = abs(ours - printed) <= NEAR * printed
    verdict: Verdict = "reproduced" if round(ours, digits) == printed else "partly" if near else "not"
    text = f"{what}: printed {printed:,.{digits}f}, ours {ours:,.{digits}f}."
    return Finding(where, verdict, text, printed, ours, ours - printed, counted=True)


def claim(where: str, says: str, parts: Mapping[str, Verdict]) -> Finding:
    """A claim, by what each of its parts says and its verdict."""
    return Finding(where, together(parts.values()), f"{says}: {'; '.join(parts)}.")


def unprinted(where: str, text: str) -> Finding:
    """What was measured where the document's own figures are lost: open."""
    return Finding(where, "open", text)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.5g}"


def spread(numbers: Sequence[float], folds: float = 0.0) -> str:
    """The mean, with its 95% interval if there is one."""
    its = interval(numbers, folds)
    runs = f" ({len(numbers)} runs, 95% [{its[0]:.4g}, {its[1]:.4g}])" if its else " (1 run)"
    return f"{_number(statistics.fmean(numbers))}{runs}"


def difference(numbers: Sequence[float], unit: str = "", folds: float = 0.0) -> str:
    """The mean of differences with its 95% interval and p value, in words."""
    mean, its = f"{statistics.fmean(numbers):+.3g}{unit}", interval(numbers, folds)
    if its is None:
        return f"{mean}, 1 pair"
    p = "" if its[0] == its[1] else f", p = {_p_value(numbers, folds):.2g}"
    return f"{mean}, 95% [{its[0]:+.3g}, {its[1]:+.3g}]{p}, {len(numbers)} pairs"


def _p_value(numbers: Sequence[float], folds: float) -> float:
    """Of the t test that goes with `interval`."""
    n = len(numbers)
    t = statistics.fmean(numbers) / (statistics.stdev(numbers) * math.sqrt(1 / n + folds))
    return float(2 * scipy.stats.t.sf(abs(t), n - 1))
