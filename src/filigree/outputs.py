"""The tensors in what a model returns: a tensor, a tuple, a mapping, a dataclass, or these in each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional


def tensors_in(output: Any) -> list[Tensor]:
    """All tensors of a model's output, in order; what is neither a tensor nor holds any is left out."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, tuple | list):
        parts = list(output)
    elif is_dataclass(output) and not isinstance(output, type):
        parts = [getattr(output, field.name) for field in fields(output)]
    else:
        return []
    return [tensor for part in parts for tensor in tensors_in(part)]


def by_class(output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and labels as torch's cross entropy takes them, classes second.

    Outputs `(batch, length, classes)` of labels `(batch, length)`, as language models give them, become
    `(batch * length, classes)` and `(batch * length,)`; all else is returned as it is.
    """
    sides = output.shape
    last = output.dim() == y.dim() + 1 > 2 and sides[:-1] == y.shape and (sides[0], *sides[2:]) != y.shape
    return (output.flatten(0, -2), y.flatten()) if last else (output, y)


def is_quantity(y: Any) -> bool:
    """Whether targets are one floating-point number a sample, `(batch, 1)`: those of a regression."""
    return isinstance(y, Tensor) and y.is_floating_point() and y.dim() == 2 and y.shape[1] == 1


def default_loss(output: Tensor, y: Tensor) -> Tensor:
    """The mean squared error of one quantity a sample, else the cross entropy."""
    if is_quantity(y) and output.shape == y.shape:
        return functional.mse_loss(output, y)
    return functional.cross_entropy(*by_class(output, y))


def numbers_in(output: Any, who: str) -> list[Tensor]:
    """Those of them that hold real or complex numbers; at least one.

    Raises:
        ValueError: there is none; by the name of `who` asks.
    """
    numbers = [tensor for tensor in tensors_in(output) if tensor.is_floating_point() or tensor.is_complex()]
    if not numbers:
        raise ValueError(
            f"{who}: the model must return a tensor of numbers, or tuples, mappings or dataclasses of them. "
            f"Got a {type(output).__name__}."
        )
    return numbers
