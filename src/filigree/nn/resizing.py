"""Parameters that change their size, and the optimizers that hold states of the old size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from filigree.summary import says

LIKE_PARAMETERS = (  # in an optimizer's state, of their parameter's shape
    "momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "sum", "square_avg", "error_feedback",
)  # fmt: skip

_resized = 0  # how often a parameter has been resized in this process
_CHECKED = "_filigree_checked"  # attribute of an optimizer: `_resized` when its states were last checked


def resize_(parameter: nn.Parameter, data: Tensor) -> None:
    """Give a parameter numbers of another size; it stays the same object, and loses its gradient.

    An optimizer that holds states of the old size raises `ValueError` at its next step: fused optimizers would read and
    write beyond the end of those states.
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


# -- the sizes of torch's own layers; those of filigree say theirs (`filigree.nn.capabilities`) ------------------------

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def torch_sizes(module: Any) -> list[int] | None:
    """Outputs, inputs and whether there is a bias (and groups) of a linear layer or a convolution; features of a batch
    norm; None of other modules."""
    if isinstance(module, nn.Linear):
        return [module.out_features, module.in_features, int(module.bias is not None)]
    if isinstance(module, nn.Conv2d):
        return [module.out_channels, module.in_channels, int(module.bias is not None), module.groups]
    return [module.num_features] if isinstance(module, _NORMS) else None


def sizes_of(module: Any) -> list[int] | None:
    """The sizes of a layer that pruning can change; None of other modules."""
    return module.sizes() if says(module) else torch_sizes(module)


def has_units(module: nn.Module) -> bool:
    """Whether pruning can take outputs and inputs out of this layer."""
    sizes = sizes_of(module)
    return sizes is not None and len(sizes) > 1
