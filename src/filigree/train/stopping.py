"""Early stopping: end a run once a metric has not improved for a while."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from filigree.train.history import Row


@dataclass
class EarlyStopping:
    """Stop after `patience` epochs without improvement of `metric`.

    Args:
        metric: a name in the history's rows: `val_loss`, `val_accuracy`, `train_loss`, ...
        patience: epochs without improvement that end the run, at least 1.
        mode: "min" or "max": which direction is better.
        restore_best: at the end, however it came, give the model the weights (and topology) of its best epoch. The
            optimizer is left as it is.
        min_delta: an improvement must be larger than this, >= 0.
        target: stop as soon as the metric is at least as good: fine-tuning until the original accuracy is regained.

    A metric that is NaN is no improvement. `fit` begins every run from a clean slate (or the checkpoint's), so one
    object serves several runs.
    """

    metric: str = "val_loss"
    patience: int = 10
    mode: Literal["min", "max"] = "min"
    restore_best: bool = True
    min_delta: float = 0.0
    target: float | None = None

    best: float = field(default=math.nan, init=False)
    best_epoch: int | None = field(default=None, init=False)
    weights: dict[str, Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"EarlyStopping: patience must be at least 1. Got {self.patience}.")
        if self.mode not in ("min", "max"):
            raise ValueError(f"EarlyStopping: mode must be 'min' or 'max'. Got {self.mode!r}.")
        if not self.min_delta >= 0:
            raise ValueError(f"EarlyStopping: min_delta must be >= 0. Got {self.min_delta}.")

    def check(self, has_validation: bool, has_test: bool) -> None:
        """`ValueError` where the metric needs data that `fit` was not given."""
        for prefix, given, argument in (("val_", has_validation, "validation"), ("test_", has_test, "test")):
            if self.metric.startswith(prefix) and not given:
                raise ValueError(f"EarlyStopping: metric {self.metric!r} needs {argument} data. Give fit {argument}=.")

    def reset(self) -> None:
        self.best, self.best_epoch, self.weights = math.nan, None, None

    def update(self, row: Row, model: nn.Module) -> bool:
        """Take note of an epoch, keep the weights if it is the best; True if the run should end here."""
        if self.metric not in row:
            raise ValueError(f"EarlyStopping: metric must be one of {', '.join(row)}. Got {self.metric!r}.")
        value = float(row[self.metric])
        gain = value - self.best if self.mode == "max" else self.best - value
        if self.best_epoch is None or gain > self.min_delta or (math.isnan(self.best) and not math.isnan(value)):
            self.best, self.best_epoch = value, row["epoch"]
            if self.restore_best:
                self.weights = copy.deepcopy(model.state_dict())
        return self.reached(value) or row["epoch"] - self.best_epoch >= self.patience

    def reached(self, value: float) -> bool:
        """Whether a value of the metric is as good as the target."""
        if self.target is None:
            return False
        return value >= self.target if self.mode == "max" else value <= self.target

    def restore(self, model: nn.Module) -> None:
        """Give the model the weights of the best epoch."""
        if self.weights is not None:
            model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch, self.weights = state["best"], state["best_epoch"], state["weights"]
