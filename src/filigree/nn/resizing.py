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
    parameter.grad = None
    # A graph of an earlier pass that is still held keeps the node that adds up the gradient, with the old size; torch
    # makes a new one where the type changes.
    parameter.data = data.new_empty(0, dtype=torch.float64 if data.dtype != torch.float64 else torch.float32)
    parameter.data = data
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
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer._numel_cache = None  # how many numbers its parameters have together
    optimizer.__dict__[_CHECKED] = _resized


# -- the sizes of torch's own layers; those of filigree say theirs (`filigree.nn.capabilities`) ------------------------

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' linear layer with a transposed weight, `Conv1D`."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__) and hasattr(module, "nf")


def torch_sizes(module: Any) -> list[int] | None:
    """Outputs, inputs and whether there is a bias (and groups) of a linear layer or a convolution; features of a batch
    norm; None of other modules."""
    if isinstance(module, nn.Linear):
        return [module.out_features, module.in_features, int(module.bias is not None)]
    if isinstance(module, CONVOLUTIONS + TRANSPOSED):
        return [module.out_channels, module.in_channels, int(module.bias is not None), module.groups]
    if is_conv1d(module):
        return [module.weight.shape[1], module.weight.shape[0], 1]
    return [module.num_features] if isinstance(module, NORMS) else None


def weight_sides(module: nn.Module) -> tuple[int, int]:
    """The dimensions of a torch layer's weight that are its outputs and its inputs."""
    return (1, 0) if isinstance(module, TRANSPOSED) or is_conv1d(module) else (0, 1)


def sizes_of(module: Any) -> list[int] | None:
    """The sizes of a layer that pruning can change; None of other modules."""
    return module.sizes() if says(module) else torch_sizes(module)


def has_units(module: nn.Module) -> bool:
    """Whether pruning can take outputs and inputs out of this layer."""
    sizes = sizes_of(module)
    return sizes is not None and len(sizes) > 1


def cuts_itself(module: nn.Module) -> bool:
    """Whether units are taken out of this layer by its `keep_outputs_` and `keep_inputs_`: one of filigree with numbers
    in a form of its own, not one in place of torch's that has the same parameters."""
    return says(module) and has_units(module) and not isinstance(module, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED))
