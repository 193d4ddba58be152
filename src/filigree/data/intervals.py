"""Intervals of means over runs, seeds or the folds of a repeated cross-validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # its parts load at their first use: `scipy.stats` takes longer than `import torch`

_OWN_TEST_SETS = ("mnist", "fashion-mnist", "cifar-10", "imagenet")


def mean_interval(
    scores: Sequence[float], test_share: float = 0.0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of scores and its t interval, corrected where the runs share samples (Nadeau and Bengio 2003).

    The training parts of folds overlap, so the variance of the mean is taken as (1 / n + n_test / n_train) s^2, with
    s^2 the variance of the n scores: the corrected resampled t interval. With share 0 it is the common one.

    Args:
        test_share: n_test / n_train, see `overlap`.

    Returns:
        mean, low, high.
    """
    if len(scores) < 2:
        raise ValueError(f"mean_interval: at least two scores are expected. Got {len(scores)}.")
    values = np.asarray(scores, float)
    n, mean = len(values), float(values.mean())
    spread = math.sqrt((1 / n + test_share) * values.var(ddof=1))
    reach = float(scipy.stats.t.ppf((1 + confidence) / 2, n - 1)) * spread
    return mean, mean - reach, mean + reach


def paired_interval(
    a: Sequence[float], b: Sequence[float], test_share: float = 0.5, confidence: float = 0.95
) -> tuple[float, float, float]:
    """`mean_interval` of a - b, for scores of the same folds.

    Args:
        a, b: scores of two methods, fold by fold.
        test_share: n_test / n_train; 1 / (folds - 1) for k-fold cross-validation.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"paired_interval: at least two paired scores are expected. Got {len(a)} and {len(b)}.")
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], test_share, confidence)


def overlap(data: Mapping[str, Any]) -> float:
    """n_test / n_train where the runs of a recipe's `data` share samples: folds, or parts drawn by each seed; 0 where
    all have one test set and differ by their seed alone."""
    validation = data.get("validation") or 0
    trained = 1 - validation if 0 < validation < 1 else 1  # of what is not tested
    if data.get("folds"):
        return float(1 / (data["folds"] - 1) / trained)
    if data.get("name") in _OWN_TEST_SETS:
        return 0.0
    tested = data.get("test_size", 1 / 3)
    return float(tested / (1 - tested) / trained)
