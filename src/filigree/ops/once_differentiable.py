"""Gradients that can be differentiated once, and say so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the `backward` of a `torch.autograd.Function` whose gradients cannot be differentiated: to do so is an error.

    torch's decorator of this name says so only where the incoming gradient has derivatives: those by the saved tensors
    are then taken for 0.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *dy: Tensor) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *dy)
        with torch.no_grad():
            found = backward(ctx, *dy)
        held = [t for t in (*dy, *ctx.saved_tensors) if isinstance(t, Tensor) and t.requires_grad]
        leaves = held or [torch.zeros((), requires_grad=True)]
        name = type(ctx).__name__
        if isinstance(found, Tensor):
            return _DifferentiatedOnce.apply(name, found, *leaves)
        return tuple(
            _DifferentiatedOnce.apply(name, each, *leaves) if isinstance(each, Tensor) else each for each in found
        )

    return once


class _DifferentiatedOnce(torch.autograd.Function):
    """A gradient as it is, that stands on every path to what it was made from."""

    @staticmethod
    def forward(ctx: Any, name: str, gradient: Tensor, *made_from: Tensor) -> Tensor:
        ctx.name = name
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(f"{ctx.name}: trying to differentiate twice what is once_differentiable.")
