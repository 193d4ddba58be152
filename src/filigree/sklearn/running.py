"""What surrounds an estimator's training: its own randomness, threads, checked numbers, and whether it diverged."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from filigree.convert import replace_module
from filigree.nn.dropout.dropout import FastDropout
from filigree.ops.dropout import dropout


def takes_parts(self: Any) -> bool:
    """Whether the estimator has `partial_fit`, which holds no data out."""
    for name in ("early_stopping", "calibrate"):
        if getattr(self, name, False):
            raise AttributeError(f"{type(self).__name__}: partial_fit does not support {name}=True.")
    return True


def diverged(losses: Sequence[float], constant: float, blind: float) -> bool:
    """Whether nothing was learned, or the loss burst: as its units die it comes back near that of a constant answer.

    An untrained network's loss is no burst, however little a constant answer loses where one class is rare.
    """
    burst = max(losses) > 10 * max(constant, blind) and losses[-1] > constant / 2
    return constant > 0 and (burst or (len(losses) > 1 and losses[-1] >= max(losses[0], constant)))


def rescale_(scaler: StandardScaler, values: Any, weights: np.ndarray | None) -> None:
    """Update a scaler with more data; a sum of weights that it has counted so far stays a fraction."""
    if weights is None and np.asarray(scaler.n_samples_seen_).dtype.kind == "f":
        weights = np.ones(values.shape[0])
    elif weights is not None:
        scaler.n_samples_seen_ = np.asarray(scaler.n_samples_seen_, np.float64)[()]
    scaler.partial_fit(values, None, weights)


def is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


class Dropout(FastDropout):
    """Dropout with a generator of its own, so that estimators fitted in parallel threads do not disturb each other."""

    def __init__(self, p: float, generator: torch.Generator) -> None:
        super().__init__(p)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return dropout(x, self.p, int(torch.randint(2**63 - 1, (), generator=self.generator)))


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Torch's threads for a while, counted as joblib does: -1 are all cores, -2 all but one."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count if count > 0 else max(1, (os.cpu_count() or 1) + 1 + count))
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def draw_dropout_from_(network: nn.Module, generator: torch.Generator) -> None:
    """Let each dropout of a network draw from this generator."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Dropout):
            replace_module(network, name, Dropout(layer.p, generator))


def draw_dropout_as_torch_(network: nn.Module) -> None:
    """Undo that: torch's own layers, in evaluation mode, which a file can hold."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, Dropout):
            replace_module(network, name, nn.Dropout(layer.p).eval())
