"""Data in tensors: training, validation and test part, standardised by the training part only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from filigree.config import check_choice
from filigree.data.encodings import Encoding
from filigree.data.preprocessing import Preprocessing
from filigree.data.vocabulary import Vocabulary
from filigree.ops.sparse_rows import is_scipy_sparse, rows_with, sparse_rows

Standardize = Literal["feature", "global"] | None


class Split(NamedTuple):
    """Samples `x` `(n, features)` or `(n, channels, height, width)`, float32 (a CSR tensor where a file's rows are
    sparse), and labels `y` `(n,)`, int64; of a regression `y` is float32 `(n, 1)`, standardised by the training part's
    mean and deviation."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, repr=False)
class DataSet:
    """The parts of a data set, and how they were split and standardised.

    Attributes:
        input_shape: of one sample, as an image where it is one. augment: `augment(x, generator)` on a training batch.
        notes: how it was split and standardised; of a file, first of all what was read.
        feature_names: the columns' names, where a file has some. class_names: of the labels 0, 1, ..., where they are
            known. classes: how many; of a regression 1, the number of outputs. preprocessing: what made the samples'
            numbers of those that were read. vocabulary: of a text (`fg.data.load_text`), whose samples are int64
            tokens.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: int
    input_shape: tuple[int, ...]
    augment: Callable[..., Tensor] | None = None
    notes: list[str] = field(default_factory=list)
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    vocabulary: Vocabulary | None = None

    def __repr__(self) -> str:
        held = 0 if self.validation is None else len(self.validation.x)
        shape = " x ".join(map(str, self.input_shape))
        sizes = f"{len(self.train.x):,} train, {held:,} validate, {len(self.test.x):,} test"
        what = f"{self.classes:,} classes" if self.task == "classification" else "a quantity"
        return f"DataSet({self.name}: {sizes}; samples of {shape}, {what})"

    @property
    def task(self) -> str:
        """ "classification" or "regression"."""
        return "classification" if self.preprocessing is None else self.preprocessing.task


def check(x: Any, y: Any, classes: int, name: str) -> None:
    """`ValueError` for samples and labels of unlike number, values that are not finite, labels out of range."""
    count = x.shape[0]
    if count != len(y):
        raise ValueError(f"data {name}: x and y must have as many samples. Got {count} and {len(y)}.")
    if not count:
        raise ValueError(f"data {name}: at least one sample is expected. Got none.")
    if is_scipy_sparse(x):
        finite = ~rows_with(x, ~np.isfinite(x.data))
    else:
        finite = np.isfinite(np.asarray(x)).reshape(count, -1).all(1)
    if not finite.all():
        raise ValueError(
            f"data {name}: x must be finite. Got NaN or Inf in {int((~finite).sum())} of {count} samples, "
            f"first in row {int(np.argmin(finite)) + 1}."
        )
    if int(np.min(y)) < 0 or int(np.max(y)) >= classes:
        raise ValueError(f"data {name}: labels must lie in [0, {classes}). Got {int(np.min(y))} to {int(np.max(y))}.")


def spread(x: Any, axis: int | None) -> tuple[Any, Any]:
    """The mean and the deviation of a sparse matrix of scipy, float64: of each feature (axis 0), or of all numbers."""
    count = x.shape[0] if axis == 0 else x.shape[0] * x.shape[1]
    mean = np.asarray(x.sum(axis)).reshape(-1) / count
    squares = np.asarray(x.multiply(x).sum(axis)).reshape(-1) / count
    deviation = np.sqrt(np.maximum(squares - mean**2, 0))
    return (mean, deviation) if axis == 0 else (mean[0], deviation[0])


def assemble(
    name: str,
    x: Any,
    y: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    *,
    classes: int,
    input_shape: tuple[int, ...],
    standardize: Standardize,
    images: bool,
    notes: list[str],
    feature_names: tuple[str, ...] = (),
    class_names: tuple[str, ...] = (),
    target_name: str = "",
    encodings: tuple[Encoding, ...] = (),
    impute: bool = False,
    task: str = "classification",
    transpose: bool = False,
    first: int | None = None,
) -> DataSet:
    """A `DataSet` of the samples numbered by `train`, `validation` and `test`; with `impute`, NaN becomes
    the mean of the feature in the training part. Of a regression y is standardised too."""
    check_choice(f"data {name}", "standardize", standardize, ("feature", "global", None))
    sparse = is_scipy_sparse(x)
    with np.errstate(over="ignore"):
        small = x.astype(np.float32, copy=False)
    gaps = impute and not sparse and bool(np.isnan(small).any())
    if gaps and standardize != "feature":
        raise ValueError(f"data {name}: missing='mean' needs standardize='feature'. Got {standardize!r}.")
    regression = task == "regression"
    check(np.where(np.isnan(small), 0, small) if gaps else small, np.zeros(len(y)) if regression else y, classes, name)
    if sparse and images:
        raise ValueError(f"data {name}: images are dense samples. Got sparse rows.")
    x = x if x.dtype == np.float64 and standardize is not None else small
    x = x if sparse else x.reshape(len(x), -1)
    mean: Any = 0.0
    deviation: Any = 1.0
    if standardize is not None:
        axis = 0 if standardize == "feature" else None
        known = x[train].astype(np.float64)
        if sparse:
            mean, deviation = spread(known, axis)
        elif gaps:
            count = np.maximum((~np.isnan(known)).sum(0), 1)
            mean = np.nansum(known, 0) / count
            deviation = np.sqrt(np.nansum((known - mean) ** 2, 0) / count)
        else:
            mean, deviation = known.mean(axis, dtype=np.float64), known.std(axis, dtype=np.float64)
        rounding = 10 * np.finfo(np.float64).eps * np.abs(mean)
        deviation = np.where(deviation > rounding, deviation, 1)  # a constant feature becomes zero
        by = "deviation, so that zeros stay" if sparse else "mean and deviation"
        notes = [*notes, f"standardised by the training part's {by} ({standardize})"]
        mean = np.zeros_like(mean) if sparse else mean
    targets: np.ndarray = np.asarray(y).astype(np.int64)
    target_mean, target_deviation = 0.0, 1.0
    if regression:
        target_mean, target_deviation = float(y[train].mean()), float(y[train].std())
        target_deviation = target_deviation or 1.0
        targets = ((y - target_mean) / target_deviation).astype(np.float32)[:, None]
        notes = [*notes, f"the quantity is learned as (y - {target_mean:.6g}) / {target_deviation:.6g}"]
    shape = input_shape if images else (-1,)

    def part(numbers: np.ndarray) -> Split:
        if sparse:
            scaled = x[numbers].astype(np.float64)
            scaled.data /= deviation if np.ndim(deviation) == 0 else deviation[scaled.indices]
            return Split(sparse_rows(scaled, torch.float32), torch.from_numpy(targets[numbers]))
        values = ((x[numbers] - mean) / deviation).astype(np.float32).reshape(len(numbers), *shape)
        if gaps:
            values[np.isnan(values)] = 0
        return Split(torch.from_numpy(values), torch.from_numpy(targets[numbers]))

    held = part(validation) if len(validation) else None
    preprocessing = Preprocessing(mean, deviation, feature_names, class_names, target_name, encodings,
                                  "mean" if impute else "refuse", task, target_mean, target_deviation,
                                  transpose, first)  # fmt: skip
    return DataSet(name, part(train), held, part(test), classes, tuple(input_shape), None, notes,
                   feature_names, class_names, preprocessing)  # fmt: skip
