"""What reports say of a module: a label, the numbers that it stores, its multiply-adds.

A layer of filigree says them itself (`filigree.nn.capabilities`); here is what is said of all other modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn


class Summary(NamedTuple):
    """A module in a report. Multiply-adds are those of one sample, or of one position of its input."""

    label: str
    parameters: int
    macs: int

    @classmethod
    def of(cls, module: nn.Module | Summary | None) -> Summary:
        """The summary of a module; a summary is returned as it is, and None is one of nothing."""
        if module is None:
            return cls("", 0, 0)
        return module if isinstance(module, Summary) else cls(label_of(module), numbers_of(module), macs_of(module))


def says(module: Any) -> bool:
    """Whether a module is a layer with `filigree.nn.capabilities`."""
    return hasattr(type(module), "stored_nonzeros")


def label_of(module: Any) -> str:
    """What a report calls a module, such as `Linear(784, 1000)`."""
    return module.label() if says(module) else sized_label(module)


def sized_label(module: Any) -> str:
    """The name of the module's class, with the sizes that torch's layers have."""
    sides = [getattr(module, name, None) for name in ("in_features", "out_features")]
    if sides[0] is None:
        sides = [getattr(module, name, None) for name in ("in_channels", "out_channels", "kernel_size")]
    if sides[0] is None:
        sides = [getattr(module, "num_features", None)]
    words = ["x".join(map(str, side)) if isinstance(side, tuple) else str(side) for side in sides if side is not None]
    return type(module).__name__ + (f"({', '.join(words)})" if words else "")


def numbers_of(module: nn.Module) -> int:
    """How many trained or stored numbers a module and those inside it hold."""
    return sum_stored(module, lambda layer: layer.stored_numbers(), lambda parameter: parameter.numel())


def nonzeros_of(module: nn.Module) -> int:
    """How many of these numbers are not zero."""
    return sum_stored(module, lambda layer: layer.stored_nonzeros(), lambda parameter: int(parameter.count_nonzero()))


def sum_stored(module: nn.Module, of_layer: Callable[[Any], int], of_parameter: Callable[[nn.Parameter], int]) -> int:
    """The sum over all modules inside, in which a parameter that several of them hold counts once."""
    total, counted = 0, set[int]()
    for part in module.modules():
        parameters = list(part.parameters(recurse=False))
        repeated = sum(of_parameter(parameter) for parameter in parameters if id(parameter) in counted)
        own = of_layer(part) if says(part) else sum(map(of_parameter, parameters))
        total += own - repeated
        counted.update(map(id, parameters))
    return total


def macs_of(module: Any) -> int:
    """Multiply-adds of one sample: those that the layer says, or one for each number of a matrix."""
    return int(module.macs) if says(module) else matrix_numbers(module)


def matrix_numbers(module: nn.Module) -> int:
    """The numbers of a module's own matrices, and the multiply-adds of the modules inside it."""
    own = sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter.dim() > 1)
    return own + sum(macs_of(child) for child in module.children())
