"""Gradients that are not differentiable themselves: the decorator `once_differentiable`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from filigree.ops.transforms import batched_gradients, opaque, present, transforming, with_nones


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the `backward` of a `torch.autograd.Function`: differentiating its gradients raises `RuntimeError`.

    torch's decorator of this name raises only where the incoming gradient has derivatives, and takes the derivatives by
    the saved tensors to be 0. Batched gradients (`is_grads_batched`) run it once for each.
    """

    @batched_gradients
    @functools.wraps(backward)
    def differentiated(ctx: Any, *dy: Tensor) -> Any:
        if transforming():
            kept: list[bool] = []
            return with_nones(
                opaque(functools.partial(present, functools.partial(differentiated, ctx), kept), *dy), kept
            )
        if not torch.is_grad_enabled():
            return backward(ctx, *dy)
        with torch.no_grad():
            gradients = backward(ctx, *dy)
        held = [t for t in (*dy, *ctx.saved_tensors) if isinstance(t, Tensor) and t.requires_grad]
        leaves = held or [torch.zeros((), requires_grad=True)]
        name = type(ctx).__name__
        if isinstance(gradients, Tensor):
            return _DifferentiatedOnce.apply(name, gradients, *leaves)
        return tuple(
            _DifferentiatedOnce.apply(name, each, *leaves) if isinstance(each, Tensor) else each for each in gradients
        )

    return differentiated


class _DifferentiatedOnce(torch.autograd.Function):
    """The identity on a gradient, with all that it was computed from as inputs; its backward raises `RuntimeError`."""

    @staticmethod
    def forward(ctx: Any, name: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        ctx.name = name
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(f"{ctx.name}: trying to differentiate twice what is once_differentiable.")
