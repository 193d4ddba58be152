"""Differences between methods over the folds of a repeated cross-validation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats


def paired_interval(
    a: Sequence[float], b: Sequence[float], test_share: float = 0.5, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean of a - b and its confidence interval, for scores of the same folds (Nadeau and Bengio 2003).

    The folds' training parts overlap, so the variance of the mean is taken as (1 / n + n_test / n_train) s^2, with s^2
    the variance of the n differences: the corrected resampled t interval.

    Args:
        a, b: scores of two methods, fold by fold.
        test_share: n_test / n_train; 1 / (folds - 1) for k-fold cross-validation.

    Returns:
        mean, low, high.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"paired_interval: at least two paired scores are expected. Got {len(a)} and {len(b)}.")
    difference = np.asarray(a, float) - np.asarray(b, float)
    n, mean = len(difference), float(difference.mean())
    spread = math.sqrt((1 / n + test_share) * difference.var(ddof=1))
    reach = float(scipy.stats.t.ppf((1 + confidence) / 2, n - 1)) * spread
    return mean, mean - reach, mean + reach
