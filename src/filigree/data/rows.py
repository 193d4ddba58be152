"""Rows of a user's own file as a trained model reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from filigree.config import check_choice, listed
from filigree.data.preprocessing import Preprocessing
from filigree.data.readers import read_file
from filigree.data.samples import MARKERS, MISSING, Reading, Wanted, left_out


@dataclass(frozen=True)
class Rows:
    """Rows of a file.

    Attributes:
        x: raw rows `(n, ...)`, float32 or float64: `preprocessing(x)` are a model's inputs.
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
    path: str | Path,
    preprocessing: Preprocessing,
    *,
    features: int | None = None,
    target: str | None = None,
    missing: str = "refuse",
) -> Rows:
    """Read the rows of a file that a model is to predict, as `filigree predict` does.

    Args:
        path: a file as of `fg.data.load`. A table's columns are found by the names that the model knows, in any order;
            other columns are not read. In a file without names, columns are in the model's order. `y` may be absent.
        preprocessing: of the model, `model.preprocessing`.
        features: how many a row has, where `preprocessing` does not tell: of images, and of data without names that
            were not standardised feature by feature.
        target: the column that holds the label; by default the one of the model's training, where the file has it.
        missing: "refuse" rows that lack a value, or "drop" them.

    Raises:
        FileNotFoundError, ValueError: no such file; a damaged one; columns that are not there; in one line.
    """
    check_choice("data", "missing", missing, MISSING)
    names, numbers_known = preprocessing.feature_names, len(preprocessing.mean)
    count = len(names) or (numbers_known if numbers_known > 1 else features)
    read = read_file(path, Reading(target=target, wanted=Wanted(count, names, preprocessing.target_name)))
    flat = read.x.reshape(len(read.x), -1)
    if count not in (None, flat.shape[1]):
        raise ValueError(f"data: {path}: the model reads {count} features. It has {flat.shape[1]}.")
    gaps = np.isnan(flat)
    lacking, notes = gaps.any(1), tuple[str, ...]()
    if lacking.any():
        known = read.features or names or tuple(f"feature {i + 1}" for i in range(flat.shape[1]))
        shown = listed([f"{known[i]} {int(gaps[:, i].sum())}" for i in np.flatnonzero(gaps.any(0))])
        try:
            notes = (left_out(lacking, shown, missing),)
        except ValueError as error:
            raise ValueError(f"data: {path}: {str(error).rstrip('.')}.") from None
    labels = ["" if label.lower() in MARKERS else label for label in map(str, read.labels[~lacking].tolist())]
    numbers = (np.flatnonzero(~lacking) + 1).tolist()
    return Rows(torch.from_numpy(read.x[~lacking]), labels if any(labels) else None, numbers, read.label, notes)
