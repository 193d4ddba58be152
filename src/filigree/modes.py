"""How a model runs: in evaluation mode for a while; outside compiled graphs; by fused optimizers."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from filigree.wrappers import unwrapped

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and afterwards each module back into its own (a frozen norm stays frozen)."""
    modes = _modes(model)
    try:
        model.eval()
        yield
    finally:
        _set_modes(modes)


@contextmanager
def training(model: nn.Module) -> Iterator[Callable[[nn.Module], None]]:
    """Yield a function that puts the model, or what wraps it, into training mode; afterwards restore all modes.

    Modules in evaluation mode, such as a frozen norm, stay so where the model itself is in training mode.
    """
    plain = unwrapped(model)
    modes, trains = _modes(plain), plain.training
    around = [(module, mode) for module, mode in _modes(model) if all(module is not inner for inner, _ in modes)]
    frozen = [inner for module, mode in modes if not mode for inner in _modes(module)] if trains else []

    def train(runner: nn.Module) -> None:
        runner.train()
        _set_modes(frozen)

    try:
        yield train
    finally:
        plain.train(trains)  # also what is new in it
        _set_modes(frozen if trains else modes)
        for module, mode in around:
            module.training = mode


def _modes(model: nn.Module) -> list[tuple[nn.Module, bool]]:
    return [(module, module.training) for module in model.modules()]


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    """Put each module into its mode; a module comes before those inside it."""
    for module, mode in modes:
        if module.training != mode:
            module.train(mode)  # a module may do more than note its mode, or not take it from here
            module.training = mode


@contextmanager
def without_shortcuts() -> Iterator[None]:
    """Torch's transformer layers call their modules, instead of one kernel for all."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class DispatchMode(TorchDispatchMode):
    """Base of modes that see the operations of torch by their `__torch_dispatch__`, which torch.compile leaves alone.

    torch loads its compiler for that as soon as a mode sees an operation, which takes seconds. This one does so only
    where the compiler is loaded already.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Any:
        kind: Any = type(self)
        if "torch._dynamo" in sys.modules and "_left_alone" not in vars(kind):
            kind.__torch_dispatch__ = torch.compiler.disable(kind.__torch_dispatch__)
            kind._left_alone = True
        return super().__enter__()


def outside_graphs(function: F) -> F:
    """Decorator: torch.compile breaks its graph at `function`, as with `torch.compiler.disable`.

    That one loads torch's compiler where it decorates, which takes longer than `import torch`. This one loads nothing
    before there is a graph, and an eager call pays for no wrapper of the compiler's.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        run = torch.compiler.disable(function) if torch.compiler.is_compiling() else function
        return run(*args, **kwargs)

    return call  # type: ignore[return-value]


def is_autocast(x: Tensor) -> bool:
    """Return whether `torch.autocast` is on for the device of x; on meta tensors there is none."""
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def takes_fused(model: nn.Module) -> bool:
    """Return whether torch's fused optimizers take all of the model's parameters: they know no complex numbers."""
    return all(parameter.is_floating_point() for parameter in model.parameters())


def takes_fused_sgd(model: nn.Module) -> bool:
    """Return the same for fused SGD.

    It also fails where a step may leave out blocks, whose parameters get a gradient, and momentum, later than others.
    """
    return takes_fused(model) and not any(getattr(module, "skips", False) for module in model.modules())
