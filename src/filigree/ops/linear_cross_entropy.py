"""The loss of a classifier with very many classes, without its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from filigree.ops.once_differentiable import once_differentiable
from filigree.ops.transforms import transforming

_NUMBERS = 2**22  # logits that are held at a time: 16 MiB in float32
_SUMMED = 1024.0  # differences of 1 that are summed in float16 at most, which ends at 65504


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, chunk: int | None = None,
    tied: TiedRows | None = None,
) -> Tensor:  # fmt: skip
    """The mean cross-entropy of `x W^T` to class indices, with exact gradients, in the memory of some samples' logits.

    The logits of a chunk of samples are computed, and at once what the gradients of x and of the weight have of them;
    then they are let go. Equal to `F.cross_entropy(x @ weight.T, targets)`, in the same multiply-adds: with 50,257
    classes and 1,024 samples in 16 MiB instead of 400 (logits and their gradient). Gradients are computed along with
    the loss, and are once differentiable. (torch 2.13 has a function of this name, whose `options` chunk too.)

    Args:
        x: `(..., features)`. weight: `(classes, features)`.
        targets: `(...)` class indices; those that are `ignore_index` do not count.
        chunk: samples at a time; by default so many that they have about 4 million logits.
        tied: rows of the same weight from which x was computed; one matrix takes both gradients of it then.

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
    loss: Tensor = _LinearCrossEntropy.apply(x, weight, targets, ignore_index, chunk, tied)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, chunk: int, tied: TiedRows | None
    ) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        loss, dx, dw = _passes(x, weight, targets, ignore_index, chunk, needs_x, needs_weight)
        ctx.rest, ctx.tied, ctx.dw = (ignore_index, chunk), tied, None
        kind = x.device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        if tied is None or dw is None:
            ctx.save_for_backward(dx, dw)
        else:
            ctx.save_for_backward(dx, None, x, weight, targets)
            ctx.dw = dw  # for the rows to be added to it: it serves once, then it is computed again
        return loss

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        # Several gradients at once are taken one by one, all of them before the rows'.
        ctx.batched = transforming() or torch._C._functorch.is_legacy_batchedtensor(dy)
        gradients: tuple[Tensor | None, ...] = _LinearCrossEntropy._backward(ctx, dy)
        return gradients

    @staticmethod
    @once_differentiable
    def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, *inputs = ctx.saved_tensors
        if inputs:
            (x, weight, targets), (ignore_index, chunk) = inputs, ctx.rest
            dw, ctx.dw = ctx.dw, None
            if dw is None:
                kind, dtype, enabled = ctx.autocast
                with torch.autocast(kind, dtype, enabled=enabled):
                    dw = _passes(x, weight, targets, ignore_index, chunk, False, True)[2]
        dx = None if dx is None else dx * dy.to(dx.dtype)  # what was saved stays for another pass
        dw = None if dw is None else dw.mul_(dy) if inputs else dw * dy.to(dw.dtype)
        if inputs and not ctx.batched and ctx.tied.takes(dw):
            dw = None
        return dx, dw, None, None, None, None


def _passes(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, chunk: int, needs_x: bool, needs_weight: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss and, where they are needed, its gradients by x and by the weight."""
    exact = torch.promote_types(x.dtype, torch.float32)
    dx = torch.zeros_like(x, dtype=exact if x.dtype is torch.float16 else None) if needs_x else None
    dw = torch.zeros_like(weight) if needs_weight else None
    counts = targets != ignore_index
    scale = 1 / counts.sum().to(exact)  # the reciprocal of integers is float32
    loss = torch.zeros((), dtype=exact, device=x.device)
    kind, lift, factor = x.device.type, None, scale
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16:
        # A scaled loss scales them too late: a share of 1 / samples would be zero in the products.
        factor = torch.full_like(scale, min(1.0, _SUMMED / chunk))
        lift = factor / scale
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
        dlogits = dlogits.mul_((taken * factor)[:, None]).to(x.dtype)
        if dx is not None:
            dx[rows] = _lowered(dlogits @ weight.to(x.dtype), dx.dtype, lift)
        if dw is not None and x.dtype is dw.dtype and not torch.is_autocast_enabled(kind):
            dw.addmm_(dlogits.t(), x[rows])  # no second matrix of the weight's size
        elif dw is not None:
            dw += _lowered(dlogits.t() @ x[rows], dw.dtype, lift)
    return loss * scale, dx, dw


def _lowered(product: Tensor, dtype: torch.dtype, lift: Tensor | None) -> Tensor:
    product = product.to(dtype)
    return product if lift is None else product.div_(lift)


class TiedRows:
    """Rows of a weight that is the head's as well: both gradients of it become one matrix, the head's.

    torch would fill a second one with zeros for the rows, and add it to the head's. For one forward pass: `rows` at the
    bottom of the network, then `linear_cross_entropy(..., tied=)` at the top; of several heads the first one's.
    """

    def __init__(self, weight: Tensor, tokens: Tensor) -> None:
        self._of_head: dict[int, Tensor] = {}  # by the number of the backward pass: one that broke off leaves some
        self.rows: Tensor = _Rows.apply(weight, tokens, self._of_head)
        """`F.embedding(tokens, weight)`."""
        self._node = self.rows.grad_fn

    def takes(self, gradient: Tensor) -> bool:
        """Whether the rows' gradient is to be computed in this backward pass, and will be added to this one."""
        running = torch._C._current_graph_task_id()
        if self._node is None or not torch._C._will_engine_execute_node(self._node) or running in self._of_head:
            return False  # of a second head: torch adds it
        self._of_head.clear()
        self._of_head[running] = gradient
        return True


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, of_head: dict[int, Tensor]) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.of_head, ctx.shape = of_head, weight.shape
        return F.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        dw = ctx.of_head.pop(torch._C._current_graph_task_id(), None)
        dw = dy.new_zeros(ctx.shape) if dw is None else dw
        return dw.index_add_(0, tokens.reshape(-1), dy.reshape(-1, dy.shape[-1]).to(dw.dtype)), None, None
