"""What the networks of a recipe are judged by: accuracy, or R2 and the error of a quantity."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from filigree.data import DataSet, Split
from filigree.train import evaluate
from filigree.train.history import SCORES


def score_on(model: nn.Module, part: Split) -> tuple[str, float]:
    """What a network is judged by: its accuracy, or R2 of a quantity; NaN where all targets are equal."""
    means = evaluate(model, part)
    return next(((name, means[name]) for name in SCORES if name in means), ("r2", math.nan))


def add_rmse(metrics: dict[str, Any], split: DataSet) -> None:
    """Add the root of the mean squared error, in the unit of a quantity, to metrics with the losses."""
    if split.task != "regression" or split.preprocessing is None:
        return
    for part in ("train", "val", "test"):
        if (loss := metrics.get(f"{part}_loss")) is not None:
            metrics[f"{part}_rmse"] = split.preprocessing.target_deviation * math.sqrt(loss)
