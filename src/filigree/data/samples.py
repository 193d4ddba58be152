"""Samples as a file of a user's own holds them: how it is read, what its columns are called, what is missing in it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from filigree.config import check_choice, clipped, listed
from filigree.data.cells import MARKERS, is_number
from filigree.data.encodings import Encoding
from filigree.ops.sparse_rows import is_scipy_sparse, rows_with

NUMBERS, LABELS = "biuf", "biufSU"  # kinds of numpy's types
MISSING, INDEX_COLUMN = ("refuse", "drop", "mean"), ("drop", "keep")
TASKS = ("classification", "regression")
_LISTED = 5  # columns in a message
_CLASSES = 10  # classes in a message


@dataclass(frozen=True)
class Wanted:
    """The columns that a model reads: their number, where it is known, and their names, where they have some; and what
    the label was called in its training; and those of words or dates, with how they become features; and the number
    of the first feature in svmlight's format."""

    count: int | None
    names: tuple[str, ...] = ()
    label: str = ""
    encodings: tuple[Encoding, ...] = ()
    first: int | None = None


@dataclass(frozen=True)
class Reading:
    """How a file is read; the arguments are explained in `fg.data.load`. With `wanted`, it holds rows for a model, and
    labels only where they are there."""

    target: str | None = None
    missing: str = "refuse"
    index_column: str = "drop"
    drop: tuple[str, ...] = ()
    task: str | None = None
    transpose: bool = False
    wanted: Wanted | None = None

    def __post_init__(self) -> None:
        if self.task is not None:
            check_choice("data", "task", self.task, TASKS)
        if self.target is not None and not isinstance(self.target, str):
            raise TypeError(f"data: target must be a column's name, or its number as text. Got {clipped(self.target)}.")
        check_choice("data", "missing", self.missing, MISSING)
        check_choice("data", "index_column", self.index_column, INDEX_COLUMN)
        if isinstance(self.drop, str) or not all(isinstance(name, str) for name in self.drop):
            raise ValueError(f"data: drop must be a list of columns' names. Got {clipped(self.drop)}.")


@dataclass(frozen=True)
class Samples:
    """What a file holds.

    Attributes:
        x: `(n, ...)`, float32 or float64; or a sparse matrix of scipy in CSR form. labels: `(n,)`, numbers or text.
        features: the columns' names, where the file has some. label: what the label is called.
        notes: a line on each thing that was left out or assumed. encodings: of columns of words or dates; `features`
            then names what they became. sideways: a table looks as if its samples stood in columns. first: the number
            of the first feature in svmlight's format.
    """

    x: Any
    labels: np.ndarray
    features: tuple[str, ...] = ()
    label: str = "y"
    notes: tuple[str, ...] = ()
    encodings: tuple[Encoding, ...] = ()
    sideways: bool = False
    first: int | None = None

    def renamed(self, label: str, notes: tuple[str, ...], first: int | None = None) -> Samples:
        """These samples with a name of their label, and notes."""
        return dataclasses.replace(self, label=label, notes=(*self.notes, *notes), first=first)

    @classmethod
    def of(cls, x: Any, labels: np.ndarray) -> Samples:
        """Samples and labels of types and sizes that make sense; what float32 may round stays in float64.

        Labels that are all numbers are compared as numbers: 1 and 1.0 are one class, and 10 comes after 2.
        """
        if x.dtype.kind not in NUMBERS or labels.dtype.kind not in LABELS:
            raise ValueError(f"samples of {x.dtype} and labels of {labels.dtype}")
        if x.ndim < 1 or not math.prod(x.shape) or x.shape[0] != labels.size:
            raise ValueError(f"samples {x.shape} and {labels.size} labels")
        if labels.dtype.kind == "S":
            labels = np.char.decode(labels, "utf-8")
        if labels.dtype.kind == "U":
            labels = np.char.strip(labels)
            present = ~np.isin(np.char.lower(labels), sorted(MARKERS))
            if present.all() and all(map(is_number, labels.flat)):
                labels = _numbers(labels)
        exact = x.dtype.kind == "b" or x.dtype.itemsize <= (4 if x.dtype.kind == "f" else 2)
        return cls(x.astype(np.float32 if exact else np.float64, copy=False), labels.reshape(-1))

    def without_missing(self, how: str, markers: Mapping[str, Counter[str]] | None = None) -> Samples:
        """The rows that lack nothing, or `ValueError` with what is missing in how many rows.

        Args:
            how: "refuse", "drop", or "mean", which leaves NaN in the features.
            markers: what stood where a value is missing, by column; else it was NaN.
        """
        (lacks, gaps), unlabelled = gaps_in(self.x), self._unlabelled()
        lacking = lacks | unlabelled
        if not lacking.any():
            return self
        column = {feature: encoding.name for encoding in self.encodings for feature in encoding.features}
        names = [column.get(feature, feature) for feature in self.features]
        columns = {names[i] if names else f"feature {i + 1}": int(gaps[i]) for i in np.flatnonzero(gaps)}
        if unlabelled.any():
            columns[f"label {self.label}"] = int(unlabelled.sum())
        shown = listed([
            f"{name} {count}{_as_written((markers or {}).get(name.removeprefix('label '), Counter()))}"
            for name, count in columns.items()
        ])  # fmt: skip
        note = left_out(lacking, shown, how)
        if how == "mean" and is_scipy_sparse(self.x) and lacks.any():
            raise ValueError("missing='mean' is for dense samples: of sparse ones a mean would fill every row")
        if how == "mean":  # a label cannot be filled in
            lacking = unlabelled
        kept = Samples.of(self.x[~lacking], self.labels[~lacking])  # labels may all be numbers now
        return dataclasses.replace(self, x=kept.x, labels=kept.labels, notes=(*self.notes, note))

    def _unlabelled(self) -> np.ndarray:
        kind = self.labels.dtype.kind
        if kind == "U":
            return np.isin(np.char.lower(self.labels), sorted(MARKERS))
        return np.isnan(self.labels) if kind == "f" else np.zeros(len(self.labels), bool)

    def summary(self, classes: Sequence[str], y: np.ndarray) -> str:
        """What was read, in a line: "300 rows, 8 features, label 'species': setosa 100, virginica 200"."""
        sizes = [
            f"{' '.join(name.split())} {count}" for name, count in zip(classes, np.bincount(y).tolist(), strict=True)
        ]
        return f"{self._sizes()}, label {self.label!r}: {listed(sizes, _CLASSES)}"

    def summary_of_quantity(self, y: np.ndarray) -> str:
        """The same of a regression: "300 rows, 8 features, quantity 'price': 3 to 90, mean 41.5"."""
        ends = f"{float(y.min()):.6g} to {float(y.max()):.6g}, mean {float(y.mean()):.6g}"
        return f"{self._sizes()}, quantity {self.label!r}: {ends}"

    def _sizes(self) -> str:
        return f"{self.x.shape[0]:,} rows, {int(np.prod(self.x.shape[1:])):,} features"


def gaps_in(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of dense or sparse samples hold NaN, and how many each feature has."""
    if not is_scipy_sparse(x):
        missing = np.isnan(x.reshape(len(x), -1))
        return missing.any(1), missing.sum(0)
    missing = np.isnan(x.data)
    return rows_with(x, missing), np.bincount(x.indices[missing], minlength=x.shape[1])


def left_out(lacking: np.ndarray, shown: str, how: str) -> str:
    """A note that rows which lack values are left out.

    Args:
        lacking: `(rows,)`, which they are. shown: what is missing. how: "drop", "mean", or "refuse", which raises.
    """
    rows = f"{int(lacking.sum())} of {len(lacking)} rows"
    if how == "refuse":
        raise ValueError(
            f"values are missing in {rows}: {shown}. Fill them in, or leave these rows out: missing='drop', or take "
            "the means of the features: missing='mean', on the command line --missing mean or --missing drop."
        )
    if how == "mean":
        return f"values are missing in {rows}; features get their mean, rows without a label are left out: {shown}"
    if lacking.all():
        raise ValueError(f"values are missing in all {len(lacking)} rows: {shown}")
    return f"{rows} are left out, as values are missing there: {shown}"


def _as_written(markers: Counter[str]) -> str:
    return f" ({', '.join(marker or 'empty' for marker in list(markers)[:_LISTED])})" if markers else ""


def _numbers(labels: np.ndarray) -> np.ndarray:
    """Labels as numbers; as integers where all are, since large ones would become equal as floats."""
    try:
        return np.array([int(label) for label in labels.flat], np.int64).reshape(labels.shape)
    except (ValueError, OverflowError):
        return labels.astype(np.float64)
