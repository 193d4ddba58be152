"""How a model runs: in evaluation mode for a while; with blocks left out."""

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


def skips_blocks(model: nn.Module) -> bool:
    """Whether a step may leave out blocks. Their parameters then get a gradient, and momentum, later than others: what
    torch's fused SGD fails at."""
    return any(getattr(module, "skips", False) for module in model.modules())
