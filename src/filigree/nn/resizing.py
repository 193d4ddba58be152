"""Parameters that change their size, and the optimizers that have known them before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

LIKE_PARAMETERS = (  # in an optimizer's state, of their parameter's shape
    "momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "sum", "square_avg", "error_feedback",
)  # fmt: skip

_resized = 0  # how often a parameter has been resized in this process
_CHECKED = "_filigree_checked"  # on an optimizer: how often that was when its states were looked at last


def resize_(parameter: nn.Parameter, data: Tensor) -> None:
    """Give a parameter other numbers, of another size; it stays the same object, without its gradient.

    An optimizer that has states of the old size is stopped at its next step: fused ones would read and write those by
    address, beyond their end.
    """
    global _resized
    parameter.data, parameter.grad = data, None
    if not _resized:
        register_optimizer_step_pre_hook(_check)
    _resized += 1


def _check(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if optimizer.__dict__.get(_CHECKED) == _resized:
        return
    for parameter, state in optimizer.state.items():
        for name in LIKE_PARAMETERS:
            if isinstance(tensor := state.get(name), Tensor) and tensor.shape != parameter.shape:
                raise ValueError(
                    f"{type(optimizer).__name__}: its {name} is {tuple(tensor.shape)}, its parameter now "
                    f"{tuple(parameter.shape)}: another topology was loaded. Make a new optimizer."
                )
    optimizer.__dict__[_CHECKED] = _resized
