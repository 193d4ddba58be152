"""How a model runs: in evaluation mode for a while; with blocks left out; by fused optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; then each module has its own mode again: a frozen batch norm stays in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # a module may do more than note it
        for module, mode in modes:
            module.training = mode


def takes_fused(model: nn.Module) -> bool:
    """Whether torch's fused optimizers take all of its parameters: they know no complex numbers."""
    return all(parameter.is_floating_point() for parameter in model.parameters())


def takes_fused_sgd(model: nn.Module) -> bool:
    """The same of fused SGD, which also fails where a step may leave out blocks: their parameters then get a gradient,
    and momentum, later than others."""
    return takes_fused(model) and not any(getattr(module, "skips", False) for module in model.modules())
