"""Weights of samples: checked, by class, and carried to the loss beside the targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils import compute_class_weight
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor


def checked_weights(sample_weight: Any, X: Any, who: str) -> np.ndarray | None:
    """Weights of X's samples, float64 `(samples,)`, or None. `ValueError`: negative ones, or none above 0."""
    if sample_weight is None:
        return None
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64)
    if (weights < 0).any() or not (weights > 0).any():
        raise ValueError(f"{who}: sample_weight must be at least 0, and above 0 for a sample. Got {weights.min()}.")
    return weights


def by_class(class_weight: Any, y: np.ndarray, classes: np.ndarray, who: str) -> np.ndarray | None:
    """The weight of each sample's class, `(samples,)`, or None.

    Args:
        class_weight: None; "balanced", `samples / (classes x samples of the class)`; or a dict of class to weight, 1
            for classes that it lacks.
        classes: all there are, also those that no sample of y has.

    Raises:
        ValueError: a dict names what is no class, and lacks a class: a label is misspelt. (One that names every class
            may name more, as folds of the data may lack a class.)
    """
    if class_weight is None:
        return None
    named = isinstance(class_weight, str)
    if class_weight != "balanced" if named else not isinstance(class_weight, dict):
        raise ValueError(f"{who}: class_weight must be None, 'balanced' or a dict. Got {class_weight!r}.")
    present = np.unique(y)
    if named:
        weights = dict(zip(present.tolist(), compute_class_weight(class_weight, classes=present, y=y), strict=True))
    else:
        known = set(classes.tolist())
        unknown = [label for label in class_weight if label not in known]
        if unknown and not known <= set(class_weight):
            raise ValueError(f"{who}: class_weight must be of the classes {classes}. Got {_plain(unknown[0])!r} too.")
        weights = {label: class_weight.get(label, 1.0) for label in present.tolist()}
    return np.array([weights[label] for label in y.tolist()], np.float64)


def by_columns(class_weight: Any, columns: list[np.ndarray], classes: list[np.ndarray], who: str) -> np.ndarray:
    """The product of the weights of a sample's classes, a class in each of several columns, as scikit-learn's trees do.

    Args:
        class_weight: "balanced", or a list of `by_class`'s dicts, one of each column.
        classes: of each column.
    """
    if isinstance(class_weight, list | tuple) and len(class_weight) == len(columns):
        each = list(class_weight)
    elif class_weight == "balanced":
        each = [class_weight] * len(columns)
    else:
        raise ValueError(
            f"{who}: class_weight must be None, 'balanced' or a list of {len(columns)} dicts, one of each column of y. "
            f"Got {class_weight!r}."
        )
    parts = [by_class(*part, who) for part in zip(each, columns, classes, strict=True)]
    return np.prod([part for part in parts if part is not None], 0)


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label


def product(*several: np.ndarray | None) -> np.ndarray | None:
    """The product of the weights that are given; None where there are none, or all are 1."""
    given = [weights for weights in several if weights is not None and (weights != 1).any()]
    return np.prod(given, 0) if given else None


def together(*several: np.ndarray | None) -> np.ndarray | None:
    """Their product, of mean 1; None where there are none."""
    weights = product(*several)
    return None if weights is None else weights / weights.mean()


def beside(target: Tensor, weights: np.ndarray | None) -> Tensor:
    """The targets, and each one's weight as a column behind them, where there are weights."""
    if weights is None:
        return target
    columns = target.reshape(len(target), -1).double()
    return torch.cat([columns, torch.from_numpy(weights).unsqueeze(1)], 1)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The mean of `losses x weights`, in the losses' type; weights are of mean 1 over all samples."""
    return (losses * weights.to(losses.dtype)).mean()
