"""How a model runs: in evaluation mode for a while, and whether torch's fused optimizers can train it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and afterwards each module back into its own (a frozen norm stays frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        model.train(modes[0][1])  # a module may do more than note its mode
        for module, mode in modes:
            module.training = mode


def takes_fused(model: nn.Module) -> bool:
    """Return whether torch's fused optimizers take all of the model's parameters: they know no complex numbers."""
    return all(parameter.is_floating_point() for parameter in model.parameters())


def takes_fused_sgd(model: nn.Module) -> bool:
    """Return the same for fused SGD.

    It also fails where a step may leave out blocks, whose parameters get a gradient, and momentum, later than others.
    """
    return takes_fused(model) and not any(getattr(module, "skips", False) for module in model.modules())
