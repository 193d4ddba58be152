"""Temperature scaling: one number that makes the probabilities of a trained classifier as sure as they are right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from filigree.nn import SparseLinear

_COLDEST, _HOTTEST, _STEPS = -5.0, 5.0, 60  # of the logarithm of the temperature


@torch.no_grad()
def temperature_of(outputs: Tensor, loss: Callable[[Tensor], Tensor]) -> float:
    """The T > 0 at which `loss(outputs / T)` is least (Guo et al. 2017), by golden section over log T.

    The cross entropy is convex in 1 / T, so it has one minimum; T lies in [e^-5, e^5].
    """
    ratio, low, high = (5**0.5 - 1) / 2, _COLDEST, _HOTTEST
    wide = outputs.double()

    def at(logarithm: float) -> float:
        return float(loss(wide * torch.tensor(-logarithm, dtype=torch.float64).exp()))

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    of_left, of_right = at(left), at(right)
    for _ in range(_STEPS):
        if of_left < of_right:
            high, right, of_right = right, left, of_left
            left = high - ratio * (high - low)
            of_left = at(left)
        else:
            low, left, of_left = left, right, of_right
            right = low + ratio * (high - low)
            of_right = at(right)
    return float(torch.tensor((low + high) / 2).exp())


@torch.no_grad()
def cool_(network: nn.Module, temperature: float) -> None:
    """Divide a network's outputs by a temperature: the weights and the bias of its last layer."""
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear | SparseLinear)][-1]
    for parameter in last.parameters():
        parameter.div_(temperature)
