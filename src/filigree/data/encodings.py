"""Columns of words or dates as numbers: what a table's column holds, and the features that it becomes."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from filigree.config import clipped, listed
from filigree.data.cells import MARKERS, is_number

KINDS = ("categories", "days")
MOST = 32  # categories of a column
_ABSENT = MARKERS | {"none", "-"}
_EPOCH = datetime.datetime(1970, 1, 1)


@dataclass(frozen=True)
class Encoding:
    """How a column becomes features.

    Attributes:
        name: of the column.
        kind: "categories": a feature of 0 or 1 for each (one-hot); "days": a date or time as days since 1970-01-01,
            with the time of day as their fraction, in UTC where it names a zone.
        categories: in the order of the features.

    Raises:
        ValueError: another kind, or categories that are no text, in one line.
    """

    name: str
    kind: str
    categories: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", tuple(self.categories))
        if not isinstance(self.name, str) or self.kind not in KINDS:
            raise ValueError(
                f"Encoding: name must be text and kind one of {', '.join(KINDS)}. Got {clipped(self.kind)}."
            )
        if not all(isinstance(each, str) for each in self.categories):
            raise ValueError(f"Encoding: categories must be text. Got {clipped(self.categories)}.")

    @classmethod
    def of(cls, name: str, cells: Sequence[str]) -> Encoding | None:
        """The encoding of a column, or None: of words that name rows or are free text, of numbers with a few words."""
        present = [cell for cell in cells if cell.lower() not in _ABSENT]
        if present and all(_days(cell) is not None for cell in present):
            return cls(name, "days")
        kinds = Counter(present)
        words = sum(not is_number(cell) for cell in present)
        if present and len(kinds) <= MOST and 2 * len(kinds) <= len(present) <= 2 * words:
            return cls(name, "categories", tuple(sorted(kinds)))
        return None

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features: "kind=cat", "kind=dog"; of days the column's own."""
        return tuple(f"{self.name}={each}" for each in self.categories) if self.kind == "categories" else (self.name,)

    def __call__(self, cells: Sequence[str]) -> np.ndarray:
        """`(rows, features)`, float64; NaN in a row that lacks a value. A category that is not known is all zeros."""
        lacking = [cell.lower() in _ABSENT for cell in cells]
        if self.kind == "days":
            days = [None if gap else _days(cell) for cell, gap in zip(cells, lacking, strict=True)]
            wrong = [i for i, (day, gap) in enumerate(zip(days, lacking, strict=True)) if day is None and not gap]
            if wrong:
                raise ValueError(f"{self.name} must hold dates. Got {clipped(cells[wrong[0]])} in row {wrong[0] + 1}")
            return np.array([np.nan if day is None else day for day in days], np.float64)[:, None]
        values = (np.array(cells, object)[:, None] == np.array(self.categories, object)[None, :]).astype(np.float64)
        values[np.array(lacking, bool)] = np.nan
        return values

    def unknown(self, cells: Sequence[str]) -> Counter[str]:
        """The values that are not among the categories, with their number."""
        known = {*self.categories}
        if self.kind != "categories":
            return Counter()
        return Counter(cell for cell in cells if cell not in known and cell.lower() not in _ABSENT)

    def __str__(self) -> str:
        if self.kind == "days":
            return f"column {self.name!r} holds dates, read as days since 1970-01-01"
        shown = listed(self.categories, 10)
        return f"column {self.name!r} holds {len(self.categories)} categories, a feature of 0 or 1 for each: {shown}"

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "categories": list(self.categories)}


def columns_of(features: Sequence[str], encodings: Sequence[Encoding]) -> tuple[str, ...]:
    """The columns that features come from, in their order: those of an encoding are one column."""
    first = {encoding.features[0]: encoding for encoding in encodings if encoding.features}
    others = {name for encoding in encodings for name in encoding.features[1:]}
    return tuple(first[name].name if name in first else name for name in features if name not in others)


def _days(cell: str) -> float | None:
    if cell.count("-") < 2 or len(cell) > 40:
        return None
    try:
        moment = datetime.datetime.fromisoformat(cell)
    except ValueError:
        return None
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return (moment - _EPOCH) / datetime.timedelta(days=1)
