"""A mark on rewired layers: have their new connections been trained since?"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn

_WARNED = math.inf  # equal to no sum


def mark_untrained(layer: Any) -> None:
    """The layer was rewired just now; a step of any optimizer changes the sum of its weights, which is the mark.

    Their version counter will not do: torch's fused optimizers leave it as it is.
    """
    if getattr(layer, "rewired_sum", None) != _WARNED:
        layer.rewired_sum = _sum(layer)


def warn_if_untrained(model: nn.Module, caller: str) -> None:
    """`UserWarning`, once a model, if it was rewired after its last training step: new connections are as grown."""
    rewired: list[tuple[str, Any]] = [(name, m) for name, m in model.named_modules() if hasattr(m, "rewired_sum")]
    untrained = next((name for name, layer in rewired if layer.rewired_sum == _sum(layer)), None)
    if untrained is not None:
        for _, layer in rewired:
            layer.rewired_sum = _WARNED
        warnings.warn(
            f"{caller}: the new connections of layer {untrained!r} were never trained: no step of an optimizer has "
            "moved its weights since it was rewired. In a loop of your own give the evolution epochs=: then nothing is "
            "rewired after the last.",
            stacklevel=3,
        )


def _sum(layer: Any) -> float:
    return float(layer.connections.detach().sum(dtype=torch.float64))
