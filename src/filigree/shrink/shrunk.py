"""What `shrink` found: the networks that were tried, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from filigree.shrink.speed import LayoutOptions
from filigree.text_table import Tabular

SAME = 0.02  # a difference of time that is none
ALL = "all methods"


@dataclass(frozen=True)
class Attempt:
    """A network that was tried.

    Attributes:
        method: which search tried it. setting: what was done to which layers. metric: on data that nothing was fitted
        to. ms: of the batch, measured in turns with the original. bytes: of its file.
        holds: whether it keeps the asked share of the metric. tolerance, floats: of its layout, as of `fg.optimize_`:
        where the tolerance is above 0 layers may compute in int8, but for those in `floats`.
    """

    method: str
    setting: str
    metric: float
    ms: float
    bytes: int
    holds: bool
    tolerance: float = 0.0
    floats: tuple[str, ...] = ()

    @property
    def layout(self) -> LayoutOptions:
        return LayoutOptions(self.tolerance, self.floats)

    @property
    def is_alone(self) -> bool:
        """Whether one method made it; int8 is of "bits"."""
        return self.method != ALL and (self.method == "bits" or not self.tolerance)


@dataclass(frozen=True)
class Shrunk(Tabular):
    """What `shrink` found. It prints as a table of what was tried; `fg.plot.shrunk` draws it.

    Attributes:
        model: the winner, in evaluation mode and laid out for inference; a copy of the original where nothing is
            faster. original, winner: what they measured at the end, in turns. attempts: all that was tried.
        metric: its name. least: what of it was to be kept. samples: how many it was measured on, to which nothing was
            fitted. batch: the samples of the latency. met: whether the winner keeps it, within the limits.
        seconds: how long the search took. notes: what was left out, and why. spent: the seconds of each method.
        by_method: of each method alone ("layout": none) its best network, for other methods than "bits" one without
            int8 where one was tried, and what that measured at the end, in turns with the winner.
    """

    model: nn.Module = field(repr=False)
    original: Attempt
    winner: Attempt
    attempts: list[Attempt]
    metric: str
    least: float
    samples: int
    batch: int
    met: bool
    seconds: float
    notes: list[str] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)
    by_method: dict[str, tuple[Attempt, nn.Module]] = field(default_factory=dict, repr=False)

    @property
    def speedup(self) -> float:
        """The original's time over the winner's."""
        return self.original.ms / self.winner.ms

    def pareto(self) -> list[Attempt]:
        """Those attempts that no other beats in the metric at less time, the fastest first."""
        front: list[Attempt] = []
        for attempt in sorted(self.attempts, key=lambda a: (a.ms, -a.metric)):
            if not front or attempt.metric > front[-1].metric:
                front.append(attempt)
        return front

    def to_dict(self) -> dict[str, Any]:
        plain = {key: value for key, value in vars(self).items() if key not in ("model", "by_method")}
        plain |= {"original": asdict(self.original), "winner": asdict(self.winner), "speedup": self.speedup}
        return plain | {"attempts": [asdict(attempt) for attempt in self.attempts]}

    @property
    def heading(self) -> str:  # type: ignore[override]
        return f"shrink: {self.metric} of at least {self.least:.4g} on {self.samples:,} samples, batch {self.batch}"

    def table_rows(self) -> list[Sequence[str]]:
        front = self.pareto()
        rows: list[Sequence[str]] = [("method", "what was done", self.metric, "ms", "bytes", "")]
        for attempt in self.attempts:
            marks = [
                "too little" if not attempt.holds else "",
                "Pareto" if attempt in front else "",
                "winner" if (attempt.method, attempt.setting) == (self.winner.method, self.winner.setting) else "",
            ]
            numbers = f"{attempt.metric:.4g}", f"{attempt.ms:.3g}", f"{attempt.bytes:,}"
            rows.append((attempt.method, attempt.setting, *numbers, ", ".join(filter(None, marks))))
        return rows

    def table_notes(self) -> list[str]:
        return [*self.notes, *self.gains(), *self.layout(), self.verdict()]

    def layout(self) -> list[str]:
        """How a file of the winner is laid out again, where that takes a tolerance."""
        layout = self.winner.layout
        return [f"in int8; of a file by fg.optimize_(model, x, {layout})"] if layout.tolerance else []

    def gains(self) -> list[str]:
        """A line on what each method gave for its time: the fastest that kept the metric, and how long it was tried."""
        parts = []
        for method, seconds in self.spent.items():
            kept = [attempt.ms for attempt in self.attempts if attempt.method == method and attempt.holds]
            gave = f"x {self.original.ms / min(kept):.2f}" if kept else "nothing"
            parts.append(f"{method} {gave} in {seconds:.0f} s")
        return [f"what each method gave: {', '.join(parts)}"] if parts else []

    def verdict(self) -> str:
        """One line: faster or slower, and what is left of metric and bytes."""
        ratio = self.speedup
        word = f"{ratio:.2g}x faster" if ratio > 1 + SAME else "not faster, left as it was"
        if ratio < 1 - SAME:
            word = f"{1 / ratio:.2g}x slower, but within the limits"
        missed = "" if self.met else "; no network met what was asked"
        return (
            f"batch {self.batch}: {self.original.ms:.3g} -> {self.winner.ms:.3g} ms ({word}), {self.metric} "
            f"{self.original.metric:.4g} -> {self.winner.metric:.4g}, bytes {self.original.bytes:,} -> "
            f"{self.winner.bytes:,}{missed}"
        )
