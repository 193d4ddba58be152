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
- where the interval leaves it open, the finding says how many runs would decide it with a power of 80%, if their mean
  and deviation are those of ours;
- a claim of several parts is "reproduced" when all are, "partly" when some are, else "not" if one is not, or "open".

The folds of a repeated cross-validation share most of their training parts, so intervals over them are wider: `folds`
is the size of a test part to that of its training part, see `filigree.data.mean_interval`; 0 of other runs.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import scipy  # `scipy.stats` loads at its first use: it takes longer than `import torch`

from filigree.data import mean_interval

Verdict = Literal["reproduced", "partly", "not", "open"]
Interval = tuple[float, float]
Rule = Callable[..., Verdict]  # of numbers, and of `folds`

NEAR = 0.05  # of a printed count
WIDE = 0.2  # of a printed figure, or of what a percentage lacks to 100: half an interval that decides nothing
WIDE_AT_0 = 1.0  # where that is 0
POWER = 0.8
MOST_RUNS = 1000  # that a power analysis looks at


@dataclass(frozen=True)
class Finding:
    """The verdict on a printed figure or claim.

    Attributes:
        where: the citation of its document and the place in it, as in documents.yaml: "Moczulski 2019, Table 4.2".
        text: one sentence, with the numbers.
        printed, ours, difference, interval: the numbers of a figure; ours is a mean over runs, difference is ours minus
            printed, interval the 95% one of ours (None: a single run).
        counted: the figure is a count.
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
        """The finding of an experiment that is smaller than the document's: a figure is open, all else stands."""
        if self.printed is None or self.counted:
            return self
        return replace(self, verdict="open", text=f"{self.text.removesuffix('.')}, scaled.")


def interval(numbers: Sequence[float], folds: float = 0.0) -> Interval | None:
    """The 95% t interval of the mean; None for a single number."""
    if len(numbers) < 2:
        return None
    return mean_interval(numbers, folds)[1:]


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim from those on its parts."""
    different = set(verdicts)
    if different == {"reproduced"}:
        return "reproduced"
    if different & {"reproduced", "partly"}:
        return "partly"
    return "not" if "not" in different else "open"


def positive(differences: Sequence[float], folds: float = 0.0) -> Verdict:
    """The verdict on the claim that differences are positive."""
    if (bounds := interval(differences, folds)) is None:
        return "open"
    return "reproduced" if bounds[0] > 0 else "not" if bounds[1] < 0 else "open"


def equal(within: float) -> Rule:
    """The rule for differences that should be 0, with its margin."""

    def rule(differences: Sequence[float], folds: float = 0.0) -> Verdict:
        if (bounds := interval(differences, folds)) is None:
            return "open"
        if not bounds[0] <= 0 <= bounds[1]:
            return "not"
        return "reproduced" if max(-bounds[0], bounds[1]) <= within else "open"

    return rule


def at_least(limit: float) -> Rule:
    """The rule for numbers whose mean should be at least `limit`."""

    def rule(numbers: Sequence[float], folds: float = 0.0) -> Verdict:
        if (bounds := interval(numbers, folds)) is None:
            return "open"
        return "reproduced" if statistics.fmean(numbers) >= limit else "not" if bounds[1] < limit else "open"

    return rule


def runs_needed(rule: Rule, numbers: Sequence[float], folds: float = 0.0) -> int | None:
    """How many runs the rule decides with a power of 80%, if their mean and deviation s are those of `numbers`.

    The rule is asked with the interval of n runs made wider, from t(.975) to t(.975) + t(.8) times s / sqrt(n): what it
    decides then, it decides in 80% of all repetitions. None: more than `MOST_RUNS`.
    """
    mean, deviation = statistics.fmean(numbers), statistics.stdev(numbers)

    def decided(n: int) -> bool:
        reach, power = (float(scipy.stats.t.ppf(level, n - 1)) for level in (0.975, POWER))
        a = deviation * (1 + power / reach) * math.sqrt((n - 1) / 2)  # n numbers, two of them off the mean
        return rule([mean - a, mean + a, *[mean] * (n - 2)], folds=folds) != "open"

    more = range(len(numbers) + 1, MOST_RUNS + 1)
    first = bisect.bisect_left(more, True, key=decided)
    return more[first] if first < len(more) else None


def judged(text: str, rule: Rule, numbers: Sequence[float], folds: float = 0.0) -> dict[str, Verdict]:
    """A part of a claim: what it says and the verdict; where that is open, how many runs would decide."""
    verdict = rule(numbers, folds=folds)
    return {text + (_undecided(rule, numbers, folds) if verdict == "open" else ""): verdict}


def _undecided(rule: Rule, numbers: Sequence[float], folds: float) -> str:
    if len(numbers) < 2:
        return ""
    n = runs_needed(rule, numbers, folds)
    return f" ({f'about {n}' if n else f'not even {MOST_RUNS:,}'} runs would decide)"


def share(holds: Sequence[bool]) -> Verdict:
    """The verdict on a property that each run has or has not."""
    return together("reproduced" if each else "not" for each in holds)


def figure(
    where: str, what: str, printed: float, ours: Sequence[float], percent: bool = False, cap: float = math.inf,
    folds: float = 0.0,
) -> Finding:  # fmt: skip
    """A printed figure beside ours, in the same unit.

    Args:
        percent: the figure is a percentage of a whole, so that 100 - printed is a figure too.
        cap: where ours were cut off.
    """
    mean = statistics.fmean(ours)
    margin = WIDE * (min(printed, 100 - printed) if percent else abs(printed)) or WIDE_AT_0

    def rule(numbers: Sequence[float], folds: float) -> Verdict:
        if (bounds := interval(numbers, folds)) is None:
            return "open"
        wide = (bounds[1] - bounds[0]) / 2 > margin
        return "not" if not bounds[0] <= printed <= bounds[1] else "open" if wide else "reproduced"

    apart = f"{'+' if mean >= printed else ''}{_number(mean - printed)}"
    text = f"{what}: printed {_number(printed)}, ours {spread(ours, folds)}, {apart}"
    cut = printed >= cap and max(ours) >= cap
    part: dict[str, Verdict] = {text: "open"} if cut else judged(text, rule, ours, folds)
    ((text, verdict),) = part.items()
    return Finding(where, verdict, f"{text}.", printed, mean, mean - printed, interval(ours, folds))


def count(where: str, what: str, printed: float, ours: float, digits: int = 0) -> Finding:
    """A printed number of things that are counted, or a share of them with so many digits."""
    near = abs(ours - printed) <= NEAR * printed
    verdict: Verdict = "reproduced" if round(ours, digits) == printed else "partly" if near else "not"
    text = f"{what}: printed {printed:,.{digits}f}, ours {ours:,.{digits}f}."
    return Finding(where, verdict, text, printed, ours, ours - printed, counted=True)


def claim(where: str, says: str, parts: Mapping[str, Verdict]) -> Finding:
    """A claim, from what each of its parts says and the verdict on each."""
    return Finding(where, together(parts.values()), f"{says}: {'; '.join(parts)}.")


def unprinted(where: str, text: str) -> Finding:
    """What was measured where the document's own figures are lost: the verdict is open."""
    return Finding(where, "open", text)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.5g}"


def spread(numbers: Sequence[float], folds: float = 0.0) -> str:
    """The mean, with its 95% interval if there is one."""
    bounds = interval(numbers, folds)
    runs = f" ({len(numbers)} runs, 95% [{bounds[0]:.4g}, {bounds[1]:.4g}])" if bounds else " (1 run)"
    return f"{_number(statistics.fmean(numbers))}{runs}"


def difference(numbers: Sequence[float], unit: str = "", folds: float = 0.0) -> str:
    """The mean of differences with its 95% interval and p value, in words."""
    mean, bounds = f"{statistics.fmean(numbers):+.3g}{unit}", interval(numbers, folds)
    if bounds is None:
        return f"{mean}, 1 pair"
    p = "" if bounds[0] == bounds[1] else f", p = {_p_value(numbers, folds):.2g}"
    return f"{mean}, 95% [{bounds[0]:+.3g}, {bounds[1]:+.3g}]{p}, {len(numbers)} pairs"


def _p_value(numbers: Sequence[float], folds: float) -> float:
    """The p value of the t test that goes with `interval`."""
    n = len(numbers)
    t = statistics.fmean(numbers) / (statistics.stdev(numbers) * math.sqrt(1 / n + folds))
    return float(2 * scipy.stats.t.sf(abs(t), n - 1))
