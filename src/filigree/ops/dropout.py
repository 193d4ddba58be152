"""Dropout from a counter-based generator: no state, no mask kept, any number of threads the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from filigree.ops._load import kernels
from filigree.ops.memory import SHORT, check_native, floats_on_cpu
from filigree.ops.transforms import batched_gradients, outside_transforms, transforming


def dropout(x: Tensor, p: float, seed: int | None = None) -> Tensor:
    """`x` with each element zeroed with probability `p` and the others divided by 1 - p.

    Distributed as `torch.nn.functional.dropout(x, p, training=True)`; the backward pass draws the same numbers again
    instead of keeping a mask.

    Args:
        x: any shape; on the CPU the kernel runs, in float32 for 16 bits; all else is torch's own dropout.
        p: in [0, 1].
        seed: 64 bits; by default drawn from torch's global generator, so that `torch.manual_seed` determines it.
            A seed holds under transforms of `torch.func` too, for all samples of `vmap` alike.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must be in [0, 1]. Got {p}.")
    if x.is_cpu and x.dtype in SHORT:
        return dropout(x.float(), p, seed).to(x.dtype)
    if floats_on_cpu(x) and seed is not None and transforming():
        with outside_transforms():
            factor = _factor(x.shape, x.stride(), x.dtype, (0.0, p), torch.tensor(seed))
        return x * factor
    if not floats_on_cpu(x) or transforming():
        return torch.nn.functional.dropout(x, p)
    key = torch.tensor(new_seed() if seed is None else seed)
    return _CounterDropout.apply(x, 0.0, p, key)


def new_seed() -> int:
    """64 bits, as an int64, from torch's global generator."""
    return int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64))


def partition_dropout(x: Tensor, part: int, parts: int, seed: Tensor) -> Tensor:
    """`x` with the elements of one of `parts` partitions zeroed and the others times parts / (parts - 1).

    Element i is in partition `floor(xi parts)`, xi the i-th random number of `seed`, an int64 scalar: over all `part`
    in [0, parts) each is zeroed exactly once. CPU, float32 or float64; i counts in memory order.
    """
    return _CounterDropout.apply(x, part / parts, (part + 1) / parts, seed)


def _dropout(x: Tensor, low: float, high: float, seed: Tensor) -> Tensor:
    """Zero where the random number lies in [low, high)."""
    check_native(x)
    x = x.resolve_neg()
    out = torch.empty_like(x)  # keeps the strides of a dense tensor, in whatever order
    source = x if x.stride() == out.stride() else out.copy_(x)
    kept = 1 - (high - low)
    first = int(low * 2**32)
    kernels.dropout(
        x.dtype is torch.float64, x.numel(), seed.item() % 2**64, first, min(int(high * 2**32) - first, 2**32 - 1),
        1 / kept if kept > 0 else 0.0, source.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out


def _factor(
    shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, dropped: tuple[float, float], seed: Tensor
) -> Tensor:
    """What the elements of a tensor are multiplied by."""
    like = torch.empty_strided(shape, stride, dtype=dtype, device="meta")  # may overlap, which its copy does not
    return torch.ops.filigree.dropout(torch.ones_like(like, device="cpu"), *dropped, seed)


torch.library.define("filigree::dropout", "(Tensor x, float low, float high, Tensor seed) -> Tensor")
torch.library.impl("filigree::dropout", "CPU", _dropout)
torch.library.register_fake("filigree::dropout", lambda x, low, high, seed: torch.empty_like(x))


class _CounterDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float, seed: Tensor) -> Tensor:
        out = torch.ops.filigree.dropout(x, low, high, seed)
        ctx.save_for_backward(seed)
        ctx.range, ctx.shape, ctx.stride = (low, high), out.shape, out.stride()
        return out

    @staticmethod
    @batched_gradients
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        if transforming():  # the gradient is batched
            with outside_transforms():
                factor = _factor(ctx.shape, ctx.stride, dy.dtype, ctx.range, ctx.saved_tensors[0])
            return dy * factor, None, None, None
        if dy.stride() != ctx.stride:  # an element's number is its position in memory
            dy = dy.new_empty_strided(ctx.shape, ctx.stride).copy_(dy)
        return _CounterDropout.apply(dy, *ctx.range, ctx.saved_tensors[0]), None, None, None
