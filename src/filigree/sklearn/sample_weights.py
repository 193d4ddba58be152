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


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label


def together(*several: np.ndarray | None) -> np.ndarray | None:
    """The product of the weights that are given, of mean 1; None where there are none."""
    given = [weights for weights in several if weights is not None]
    if not given:
        return None
    product = np.prod(given, 0)
    return product / product.mean()


def beside(target: Tensor, weights: np.ndarray | None) -> Tensor:
    """The targets, and each one's weight as a column behind them, where there are weights."""
    if weights is None:
        return target
    columns = target.reshape(len(target), -1).double()
    return torch.cat([columns, torch.from_numpy(weights).unsqueeze(1)], 1)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The mean of `losses x weights`, in the losses' type; weights are of mean 1 over all samples."""
    return (losses * weights.to(losses.dtype)).mean()
