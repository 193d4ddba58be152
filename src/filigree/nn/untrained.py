"""A mark on rewired layers: have their new connections been trained since?"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

_WARNED = -1


def mark_untrained(layer: Any) -> None:
    """The layer was rewired just now; an optimizer that steps changes its weights in place, and thereby the mark."""
    if getattr(layer, "rewired_at", None) != _WARNED:
        layer.rewired_at = _version(layer.connections)


def warn_if_untrained(model: nn.Module, caller: str) -> None:
    """`UserWarning`, once a model, if it was rewired after its last training step: its new connections are as grown."""
    for name, layer in model.named_modules():
        if getattr(layer, "rewired_at", None) in (None, _WARNED) or layer.rewired_at != _version(layer.connections):
            continue
        for module in model.modules():
            if hasattr(module, "rewired_at"):
                module.rewired_at = _WARNED
        warnings.warn(
            f"{caller}: the new connections of layer {name!r} were never trained: it was rewired after the last step of "
            "the optimizer. In a loop of your own give the evolution epochs=, and nothing is rewired after the last.",
            stacklevel=3,
        )
        return


def _version(parameter: Tensor) -> int | None:
    """How often the parameter was changed in place."""
    return None if parameter.is_inference() else parameter._version
