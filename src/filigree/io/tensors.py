"""What tensors of a model are beyond their numbers: which of them are one, and in which order their sides lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def untie_(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give the places of one parameter parameters of their own where `state` has different tensors for them."""
    first: dict[Tensor, Any] = {}  # the stored tensor of a parameter's first place
    for module, key, parameter, stored in _places(model, state):
        if first.setdefault(parameter, stored) is not stored:
            setattr(module, key, nn.Parameter(torch.empty_like(parameter), parameter.requires_grad))


def tie_(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Let the places for which `state` has the same tensor hold one parameter."""
    first: dict[int, nn.Parameter] = {}
    for module, key, parameter, stored in _places(model, state):
        if stored is not None and first.setdefault(id(stored), parameter) is not parameter:
            setattr(module, key, first[id(stored)])


def _places(model: nn.Module, state: Mapping[str, Any]) -> Iterator[tuple[nn.Module, str, nn.Parameter, Tensor | None]]:
    """Each place where a module holds a parameter: the module, its name there, the parameter and what is stored."""
    for path, module in list(model.named_modules()):
        for key, parameter in list(module._parameters.items()):
            if parameter is not None:
                yield module, key, parameter, state.get(f"{path}.{key}".removeprefix("."))


def memory_order(tensor: Any) -> list[int] | None:
    """The sides from the slowest to the fastest in memory, channels-last for instance; None: as they are numbered.

    Products round differently by the order, and are the same bit for bit only with the same one.
    """
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dim() < 2:
        return None
    strides, sizes = tensor.stride(), tensor.shape
    if strides == torch.empty(sizes, device="meta").stride():
        return None
    return sorted(range(tensor.dim()), key=lambda side: (-strides[side], -sizes[side]))


def order_(model: nn.Module, orders: Mapping[str, list[int]]) -> None:
    """Have the tensors of the model's state dict lie in memory in these orders."""
    tensors = model.state_dict(keep_vars=True)
    for name, order in orders.items():
        tensor = tensors[name]
        if sorted(order) != list(range(tensor.dim())):
            raise ValueError(f"the memory order of {name!r} must name each of its {tensor.dim()} sides. Got {order}.")
        back = sorted(range(len(order)), key=order.__getitem__)
        lying = torch.empty([tensor.shape[side] for side in order], dtype=tensor.dtype, device=tensor.device)
        tensor.data = lying.permute(back).copy_(tensor.detach())
