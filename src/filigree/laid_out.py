"""A module that runs in another form where that may stand in for it, as `fg.optimize_` lays it out."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Protocol

from torch import nn

_KEY = "_filigree_runtime"


class Runtime(Protocol):
    """The other form: when it may stand in for the module, whether it still may, and how it runs."""

    run: Any
    tensors: int  # that come first in a call: what `run` takes
    enabled: bool

    def takes(self, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether it computes what the module does for these arguments, in the present mode."""
        ...

    def is_current(self) -> bool:
        """Whether the module's weights, modules, modes and hooks are what they were."""
        ...

    def of_copy(self, model: nn.Module, memo: dict[int, Any]) -> Runtime:
        """The same of a copy of the module."""
        ...


class LaidOut:
    """Mixin before a module's class: `forward` is the runtime's where it may be, else the module's own."""

    training: bool

    def forward(self, *args: Any, **named: Any) -> Any:
        runtime: Runtime = self.__dict__[_KEY]
        if self.training or not runtime.takes(args, named):
            return super().forward(*args, **named)  # type: ignore[misc]
        if runtime.is_current():
            return runtime.run(*args[: runtime.tensors])
        restore_(self)  # type: ignore[arg-type]
        warnings.warn(
            "optimize_: the model's weights or modules have changed since. It runs as before: call optimize_ again.",
            stacklevel=4,
        )
        return self.forward(*args, **named)

    def _apply(self, *args: Any, **named: Any) -> Any:  # to another type or device
        super()._apply(*args, **named)  # type: ignore[misc]
        if not self.__dict__[_KEY].is_current():
            restore_(self)  # type: ignore[arg-type]
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__new__, (_original(type(self)),), _without_runtime(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        duplicate = object.__new__(_original(type(self)))
        memo[id(self)] = duplicate
        duplicate.__dict__.update(copy.deepcopy(_without_runtime(self), memo))
        runtime: Runtime = self.__dict__[_KEY]
        if runtime.is_current():
            install(duplicate, runtime.of_copy(duplicate, memo))
        return duplicate


def install(model: nn.Module, runtime: Runtime) -> None:
    """Let a model run in this form, where that may stand in for it."""
    kind = type(model)
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    model.__dict__[_KEY] = runtime
    model.__class__ = type(kind.__name__, (LaidOut, kind), names)


def runtimes_of(model: nn.Module) -> list[Any]:
    """The forms of the modules in a model that have one."""
    return [vars(module)[_KEY] for module in model.modules() if isinstance(module, LaidOut)]


def restore_(model: nn.Module) -> bool:
    """Undo `optimize_`: the model and all modules in it run as before. Returns whether any was optimised."""
    laid_out = [module for module in model.modules() if isinstance(module, LaidOut)]
    for module in laid_out:
        module.__class__ = _original(type(module))
        del module.__dict__[_KEY]
    return bool(laid_out)


def _original(kind: Any) -> Any:
    """The class without the mixin; so of one that was derived from it since, as parametrisations do."""
    if kind.__bases__[0] is LaidOut:
        return kind.__bases__[1]
    bases = tuple(_original(base) if issubclass(base, LaidOut) else base for base in kind.__bases__)
    return type(kind.__name__, bases, {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")})


def _without_runtime(model: Any) -> dict[str, Any]:
    return {key: value for key, value in model.__getstate__().items() if key != _KEY}
