"""The transforms of `torch.func` over what torch cannot look into: kernels, and gradients that are not derivatives.

Kernels read memory by address, and a tensor that is being transformed (by `vmap`, `grad`, `jvp`, ...) has none. So
while a transform is active, layers whose arithmetic can be written in plain torch compute in plain torch. What cannot
be is `opaque`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a transform of `torch.func` is active, or a function with `batched_gradients` has some."""


def outside_transforms() -> AbstractContextManager[Any]:
    """A context whose operations no transform sees: for plain tensors, the state of a module."""
    return torch._C._DisableFuncTorch()


def is_batched(tensor: Tensor) -> bool:
    """Whether `vmap` gives each sample its own numbers of this tensor."""
    return any(torch._C._functorch.is_batchedtensor(inner) for inner in _layers(tensor))


def plain(tensor: Tensor, user: str) -> Tensor:
    """The numbers of a tensor that a transform has wrapped. `ValueError` if each sample has its own, by their user."""
    if is_batched(tensor):
        raise ValueError(f"{user}: all samples of vmap must have the same weights. Got other ones for each.")
    return innermost(tensor)


def innermost(tensor: Tensor) -> Tensor:
    """What transforms have wrapped into a tensor: numbers with memory of their own."""
    return _layers(tensor)[-1]


def _layers(tensor: Tensor) -> list[Tensor]:
    """A tensor and all that transforms have wrapped."""
    layers = [tensor]
    while torch._C._functorch.is_functorch_wrapped_tensor(layers[-1]):
        layers.append(torch._C._functorch.get_unwrapped(layers[-1]))
    return layers


def batched_gradients(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the `backward` of a `torch.autograd.Function`, so that it takes several gradients at once.

    `torch.autograd.grad(is_grads_batched=True)` and vectorised jacobians have a `vmap` of their own, older than that of
    `torch.func`. It knows few operations; here `torch.func.vmap` takes its place.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *dy: Tensor) -> Any:
        if torch.compiler.is_compiling() or not any(map(_is_legacy, dy)):
            return backward(ctx, *dy)
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        dims = tuple(0 if _is_legacy(each) else None for each in dy)
        each_dy = [torch._remove_batch_dim(d, level, 1, 0) if dim == 0 else d for d, dim in zip(dy, dims, strict=True)]
        kept: list[bool] = []
        some = functools.partial(present, functools.partial(backward, ctx), kept)
        batched = torch.func.vmap(some, in_dims=dims)(*each_dy)
        return with_nones([torch._add_batch_dim(each, 0, level) for each in batched], kept)

    return run


_is_legacy = torch._C._functorch.is_legacy_batchedtensor


def present(function: Callable[..., Any], kept: list[bool], *args: Any) -> tuple[Tensor, ...]:
    """What of `function(*args)` is not None; `kept` is set to where it is not. See `with_nones`."""
    computed = function(*args)
    each = (computed,) if isinstance(computed, Tensor) else computed
    kept[:] = [one is not None for one in each]
    return tuple(one for one in each if one is not None)


def with_nones(tensors: Iterable[Tensor], kept: list[bool]) -> tuple[Tensor | None, ...]:
    """The inverse of `present`."""
    remaining = iter(tensors)
    return tuple(next(remaining) if keep else None for keep in kept)


def opaque(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` for transforms: under `vmap` it is called for each sample, with plain tensors.

    Gradients are those that autograd finds when `function` is called again, and so are the gradients of gradients;
    `function` must therefore compute the same whenever it is called. There is no forward-mode derivative.

    Args:
        function: from tensors (and other things) to a tensor or a tuple of tensors.
    """
    return _Opaque.apply(function, *args)


class _Opaque(torch.autograd.Function):
    @staticmethod
    def forward(function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function, *args = inputs
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        ctx.others = [None if isinstance(arg, Tensor) else (arg,) for arg in args]
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *dy: Tensor) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        args = [next(tensors) if other is None else other[0] for other in ctx.others]
        needs = ctx.needs_input_grad[1:]
        computed = iter(opaque(_Gradient(ctx.function, needs), *args, *dy))
        return None, *(next(computed) if need else None for need in needs)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
        outputs = [
            opaque(
                function,
                *(a if dim is None else a.select(dim, number) for a, dim in zip(args, in_dims[1:], strict=True)),
            )
            for number in range(info.batch_size)
        ]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        return tuple(torch.stack(parts) for parts in zip(*outputs, strict=True)), (0,) * len(outputs[0])

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        raise RuntimeError(
            "filigree: this layer has no forward-mode derivative (torch.func.jvp, jacfwd, hessian). Use jacrev or vjp."
        )


class _Gradient:
    """The gradients of `function` that are needed, as a function of its arguments and of its output's gradient."""

    def __init__(self, function: Callable[..., Any], needs: tuple[bool, ...]) -> None:
        self.function, self.needs = function, needs

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        count = len(self.needs)
        computed = gradients(self.function, args[:count], self.needs, args[count:])
        return tuple(
            torch.zeros_like(arg) if gradient is None else gradient
            for arg, need, gradient in zip(args, self.needs, computed, strict=False)
            if need
        )


def gradients(function: Callable[..., Any], args: Sequence[Any], needs: Sequence[bool], dy: Any) -> list[Tensor | None]:
    """Gradients of `function(*args)` for the arguments that need one, the others None, from the output's gradient dy.

    They are those by each argument alone, even if another one was made from it. Where gradients are enabled, they can
    be differentiated again.
    """
    again, own = torch.is_grad_enabled(), list(args)
    with torch.enable_grad():
        for number, (arg, need) in enumerate(zip(args, needs, strict=True)):
            if need:
                own[number] = arg.view_as(arg) if arg.requires_grad else arg.detach().requires_grad_()
        y = function(*own)
    wanted = [arg for arg, need in zip(own, needs, strict=True) if need]
    computed = iter(torch.autograd.grad(y, wanted, dy, create_graph=again, allow_unused=True))
    return [next(computed) if need else None for need in needs]
