"""The loss of a classifier with very many classes, without its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from filigree.ops.once_differentiable import once_differentiable
from filigree.ops.transforms import transforming

_NUMBERS = 2**22  # logits that are held at a time: 16 MiB in float32


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, chunk: int | None = None
) -> Tensor:
    """The mean cross-entropy of `x W^T` to class indices, with exact gradients, in the memory of some samples' logits.

    The logits of a chunk of samples are computed, and at once what the gradients of x and of the weight have of them;
    then they are let go. Equal to `F.cross_entropy(x @ weight.T, targets)`, in the same multiply-adds: with 50,257
    classes and 1,024 samples in 16 MiB instead of 400 (logits and their gradient). Gradients are computed along with
    the loss, and are once differentiable. (torch 2.13 has a function of this name, whose `options` chunk too.)

    Args:
        x: `(..., features)`. weight: `(classes, features)`.
        targets: `(...)` class indices; those that are `ignore_index` do not count.
        chunk: samples at a time; by default so many that they have about 4 million logits.

    Returns:
        A scalar, in float32 at least; NaN if no sample counts.

    Raises:
        ValueError: shapes that do not fit, or a chunk below 1.
    """
    if x.shape[:-1] != targets.shape or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            "linear_cross_entropy: x must be (..., features), weight (classes, features) and targets (...). "
            f"Got {tuple(x.shape)}, {tuple(weight.shape)} and {tuple(targets.shape)}."
        )
    if chunk is None:
        chunk = max(1, _NUMBERS // len(weight))
    if chunk < 1:
        raise ValueError(f"linear_cross_entropy: chunk must be at least 1. Got {chunk}.")
    x, targets = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    if transforming():
        return F.cross_entropy(F.linear(x, weight), targets, ignore_index=ignore_index)
    loss: Tensor = _LinearCrossEntropy.apply(x, weight, targets, ignore_index, chunk)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, chunk: int) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        exact = torch.promote_types(x.dtype, torch.float32)
        dx = torch.zeros_like(x) if needs_x else None
        dw = torch.zeros_like(weight) if needs_weight else None
        counts = targets != ignore_index
        scale = 1 / counts.sum()
        loss = torch.zeros((), dtype=exact, device=x.device)
        for first in range(0, len(x), chunk):
            rows = slice(first, first + chunk)
            logits, taken = F.linear(x[rows], weight).to(exact), counts[rows]
            target = targets[rows].where(taken, 0)[:, None]
            logits -= logits.amax(1, keepdim=True)  # in place throughout: nothing else is as large
            of_target = logits.gather(1, target)
            sums = logits.exp_().sum(1, keepdim=True)
            loss += ((sums.log() - of_target)[:, 0] * taken).sum()
            if not (needs_x or needs_weight):
                continue
            dlogits = logits.div_(sums)  # softmax, less one at the target
            dlogits.scatter_add_(1, target, torch.full_like(sums, -1.0))
            dlogits = dlogits.mul_((taken * scale)[:, None]).to(x.dtype)
            if dx is not None:
                dx[rows] = (dlogits @ weight.to(x.dtype)).to(x.dtype)
            if dw is not None and x.dtype is dw.dtype and not torch.is_autocast_enabled(x.device.type):
                dw.addmm_(dlogits.t(), x[rows])  # no second matrix of the weight's size
            elif dw is not None:
                dw += (dlogits.t() @ x[rows]).to(dw.dtype)
        ctx.save_for_backward(*(part for part in (dx, dw) if part is not None))
        return loss * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors
        if torch.compiler.is_compiling() or not dy.is_cpu or dy != 1:  # else they go on uncopied
            parts = [part * dy.to(part.dtype) for part in parts]
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        return parts[0] if needs_x else None, parts[-1] if needs_weight else None, None, None, None
