"""Rows of a user's own file as a trained model reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from filigree.config import check_choice, listed
from filigree.data.cells import MARKERS
from filigree.data.encodings import columns_of
from filigree.data.preprocessing import Preprocessing
from filigree.data.readers import read_file
from filigree.data.samples import MISSING, Reading, Wanted, gaps_in, left_out
from filigree.ops.sparse_rows import is_scipy_sparse, sparse_rows


@dataclass(frozen=True)
class Rows:
    """Rows of a file.

    Attributes:
        x: raw rows `(n, ...)`, float32 or float64, a CSR tensor where the file's are sparse: `preprocessing(x)` are a
            model's inputs.
        labels: as they are written, "" where there is none; None where the file has no labels.
        numbers: of the rows in the file, from 1.
        label: the labels' name.
        notes: a line on what was left out.
    """

    x: Tensor
    labels: list[str] | None
    numbers: list[int]
    label: str = "y"
    notes: tuple[str, ...] = ()


def read_rows(
    path: Any,
    preprocessing: Preprocessing,
    *,
    features: int | None = None,
    target: str | None = None,
    missing: str | None = None,
    transpose: bool | None = None,
) -> Rows:
    """Read the rows of a file that a model is to predict, as `filigree predict` does.

    Args:
        path: a file or a frame as of `fg.data.load`. A table's columns are found by the names that the model knows, in
            any order; other columns are not read. In a file without names, columns are in the model's order. `y`
            may be absent.
        preprocessing: of the model, `model.preprocessing`.
        features: how many a row has, where `preprocessing` does not tell: of images, and of data without names that
            were not standardised feature by feature.
        target: the column that holds the label; by default the one of the model's training, where the file has it.
        missing: "refuse" rows that lack a value, "drop" them, or take the training's "mean" of the feature; by
            default as it was for the training, but that nothing is dropped unasked.
        transpose: samples stand in columns; by default as they did for the training.

    Raises:
        FileNotFoundError, ValueError: no such file; a damaged one; columns that are not there; in one line.
    """
    if not isinstance(preprocessing, Preprocessing):
        raise TypeError(f"read_rows: preprocessing must be model.preprocessing. Got a {type(preprocessing).__name__}.")
    missing = preprocessing.missing if missing is None else missing
    check_choice("data", "missing", missing, MISSING)
    names, numbers_known, encodings = preprocessing.feature_names, len(preprocessing.mean), preprocessing.encodings
    columns = columns_of(names, encodings)
    count = len(columns) or (numbers_known if numbers_known > 1 else features)
    wanted = Wanted(count, columns, preprocessing.target_name, encodings, preprocessing.first)
    transpose = preprocessing.transpose if transpose is None else transpose
    read = read_file(path, Reading(target=target, task=preprocessing.task, transpose=transpose, wanted=wanted))
    x, width = read.x, math.prod(read.x.shape[1:])
    count = len(names) or count
    if count not in (None, width):
        raise ValueError(f"data: {path}: the model reads {count} features. It has {width}.")
    lacking, gaps = gaps_in(x)
    notes = read.notes
    if lacking.any():
        known = read.features or names or tuple(f"feature {i + 1}" for i in range(width))
        shown = listed([f"{known[i]} {int(gaps[i])}" for i in np.flatnonzero(gaps)])
        try:
            notes = (*notes, left_out(lacking, shown, missing))
        except ValueError as error:
            raise ValueError(f"data: {path}: {str(error).rstrip('.')}.") from None
    if missing == "mean" and lacking.any():
        if len(preprocessing.mean) == 1:
            raise ValueError(f"data: {path}: missing='mean' is of a model that knows the mean of each feature.")
        if is_scipy_sparse(x):
            raise ValueError(f"data: {path}: missing='mean' is for dense samples.")
        flat = x.reshape(len(x), -1)
        x = np.where(np.isnan(flat), preprocessing.mean.numpy(), flat).astype(x.dtype).reshape(x.shape)
        lacking = np.zeros(len(x), bool)
    labels = ["" if label.lower() in MARKERS else label for label in map(str, read.labels[~lacking].tolist())]
    numbers = (np.flatnonzero(~lacking) + 1).tolist()
    kept = x[~lacking] if lacking.any() else x
    tensor = sparse_rows(kept) if is_scipy_sparse(x) else torch.from_numpy(kept)
    return Rows(tensor, labels if any(labels) else None, numbers, read.label, notes)
