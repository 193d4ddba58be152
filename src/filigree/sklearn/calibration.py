"""Temperature scaling: one number that makes the probabilities of a trained classifier as sure as they are right."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from filigree.nn import SparseLinear

COLDEST, HOTTEST = 0.1, 10.0  # temperatures: beyond them a few samples, all right or all wrong, would set the rest
FEW = 20  # samples of which a temperature says little
_STEPS = 60


@torch.no_grad()
def temperature_of(outputs: Tensor, loss: Callable[[Tensor], Tensor]) -> float:
    """The T > 0 at which `loss(outputs / T)` is least (Guo et al. 2017), by golden section over log T.

    The cross entropy is convex in 1 / T, so it has one minimum; T is the best one in [0.1, 10].
    """
    ratio, low, high = (5**0.5 - 1) / 2, math.log(COLDEST), math.log(HOTTEST)
    wide = outputs.double()

    def at(logarithm: float) -> float:
        return float(loss(wide * torch.tensor(-logarithm, dtype=torch.float64).exp()))

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    of_left, of_right = at(left), at(right)
    for _ in range(_STEPS):
        if of_left <= of_right:  # equal where all are right and sure beyond rounding: the colder, an end of the range
            high, right, of_right = right, left, of_left
            left = high - ratio * (high - low)
            of_left = at(left)
        else:
            low, left, of_left = left, right, of_right
            right = low + ratio * (high - low)
            of_right = at(right)
    return math.exp((low + high) / 2)


def why_doubtful(temperature: float, samples: int) -> str | None:
    """Why a temperature of so many samples is not to be trusted; None: it is."""
    if samples < FEW:
        return f"a temperature of {samples} samples says little: hold out {FEW} or more (validation_fraction)"
    if not 1.01 * COLDEST < temperature < HOTTEST / 1.01:
        return f"the best temperature of {samples} samples lies at or beyond {temperature:.3g}, an end of its range"
    return None


@torch.no_grad()
def cool_(network: nn.Module, temperature: float) -> None:
    """Divide a network's outputs by a temperature: the weights and the bias of its last layer."""
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear | SparseLinear)][-1]
    for parameter in last.parameters():
        parameter.div_(temperature)
