"""What wraps a model without being a part of it: compiled modules, and those that run on several devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_COMPILED = "_orig_mod"  # where torch.compile keeps a module, which is in the names of all that is inside


def check_module(model: Any, who: str) -> None:
    """`TypeError` in one line, by the name of `who` asks, unless this is a torch module."""
    if isinstance(model, nn.Module):
        return
    hint = " Its network is estimator.network_." * (hasattr(model, "fit") and hasattr(model, "get_params"))
    what = f"the class {model.__name__}: call it" if isinstance(model, type) else f"a {type(model).__name__}"
    raise TypeError(f"{who}: model must be a torch module. Got {what}.{hint}")


def check_on_cpu(model: nn.Module, who: str) -> None:
    """`ValueError` by the name of `who` works there, unless all of a model is on the CPU."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ValueError(f"{who}: the model must be on the CPU. {name!r} is on {tensor.device}.")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without `torch.compile`, `DataParallel` and `DistributedDataParallel` around it."""
    while True:
        if _COMPILED in model._modules:
            model = model.get_submodule(_COMPILED)
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def names_in(model: nn.Module) -> Callable[[str], str]:
    """A function from names in a wrapped model to those in the model itself, whose parts are not compiled either."""
    inner = unwrapped(model)
    whole = next(name for name, module in model.named_modules() if module is inner)

    def name_in(name: str) -> str:
        own = name.removeprefix(f"{whole}.") if whole and name != whole else name.removeprefix(whole)
        return ".".join(part for part in own.split(".") if part != _COMPILED)

    return name_in
