"""What `optimize_` puts into a model: the fast form beside the original, and when it may stand in for it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filigree.ops.inference import Steps
from filigree.ops.memory import in_memory

_KEY = "_filigree_runtime"


class Program(nn.Module):
    """Steps as a module: a tensor in, one or several out. It has no parameters and never changes: copies share it."""

    def __init__(self, steps: Steps, shapes: Sequence[tuple[int, ...]], batch_dims: Sequence[int]) -> None:
        super().__init__()
        self.steps, self.shapes, self.batch_dims = steps, tuple(shapes), tuple(batch_dims)

    def forward(self, x: Tensor) -> Any:
        x = x.contiguous()
        images = len(x)
        tensors = [x, *(x.new_empty((images, *shape)) for shape in self.shapes)]
        self.steps.run(tensors, images)
        out = [y.movedim(0, d) if d else y for y, d in zip(tensors[1:], self.batch_dims, strict=True)]
        return out[0] if len(out) == 1 else tuple(out)

    def __deepcopy__(self, memo: Any) -> Program:
        return self


class _Watch:
    """Whether a model's tensors, modules and hooks are what they were."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        tensors = [
            (held, key, value)
            for module in self.modules
            for held in (module._parameters, module._buffers)
            for key, value in held.items()
            if value is not None
        ]
        self.tensors = [(held, key, value, _version(value)) for held, key, value in tensors]
        self.children = [(m._modules, key, child) for m in self.modules for key, child in m._modules.items()]

    def unchanged(self) -> bool:
        for held, key, value, version in self.tensors:
            if held.get(key) is not value or (version is not None and value._version != version):
                return False
        return all(held.get(key) is child for held, key, child in self.children)

    def plain(self) -> bool:
        return not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in self.modules[1:])


class Runtime:
    """A graph that computes what a model does in eval mode, for inputs `(batch, *shape)`."""

    def __init__(self, graph: nn.Module, shapes: Sequence[torch.Size], model: nn.Module) -> None:
        self.graph, self.shapes, self.watch = graph, tuple(shapes), _Watch(model)
        self.run = graph.forward
        self.enabled = True

    def takes(self, args: tuple[Any, ...]) -> bool:
        return (
            self.enabled
            and len(args) == len(self.shapes)
            and not torch.is_grad_enabled()
            and all(
                type(x) is Tensor and x.dtype is torch.float32 and x.shape[1:] == shape and len(x) and in_memory(x)
                for x, shape in zip(args, self.shapes, strict=True)
            )
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and self.watch.plain()
        )


class _Optimized:
    """Mixin before a model's class: `forward` is the runtime's where it may be, else the model's own."""

    training: bool

    def forward(self, *args: Any, **named: Any) -> Any:
        runtime: Runtime = self.__dict__[_KEY]
        if self.training or named or not runtime.takes(args):
            return super().forward(*args, **named)  # type: ignore[misc]
        if runtime.watch.unchanged():
            return runtime.run(*args)
        restore_(self)  # type: ignore[arg-type]
        warnings.warn(
            "optimize_: the model's weights or modules have changed since. It runs as before: call optimize_ again.",
            stacklevel=4,
        )
        return self.forward(*args)

    def _apply(self, *args: Any, **named: Any) -> Any:  # to another type or device
        restore_(self)  # type: ignore[arg-type]
        return self._apply(*args, **named)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__new__, (_original(self),), _without_runtime(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        duplicate = object.__new__(_original(self))
        memo[id(self)] = duplicate
        duplicate.__dict__.update(copy.deepcopy(_without_runtime(self), memo))
        runtime: Runtime = self.__dict__[_KEY]
        if runtime.watch.unchanged():
            install(duplicate, copy.deepcopy(runtime.graph, memo), runtime.shapes)
        return duplicate


def install(model: nn.Module, graph: nn.Module, shapes: Sequence[torch.Size]) -> None:
    """Let a model run as a graph, where that may stand in for it."""
    kind = type(model)
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    model.__dict__[_KEY] = Runtime(graph, shapes, model)
    model.__class__ = type(kind.__name__, (_Optimized, kind), names)


def runtimes_of(model: nn.Module) -> list[Runtime]:
    return [vars(module)[_KEY] for module in model.modules() if isinstance(module, _Optimized)]


def restore_(model: nn.Module) -> bool:
    """Undo `optimize_`: the model and all modules in it run as before. Returns whether any was optimised."""
    optimised = [module for module in model.modules() if isinstance(module, _Optimized)]
    for module in optimised:
        kind = _original(module)
        module.__class__ = kind
        del module.__dict__[_KEY]
    return bool(optimised)


def _original(model: Any) -> Any:
    kind = type(model)
    return kind.__mro__[kind.__mro__.index(_Optimized) + 1]


def _without_runtime(model: Any) -> dict[str, Any]:
    return {key: value for key, value in model.__getstate__().items() if key != _KEY}


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
