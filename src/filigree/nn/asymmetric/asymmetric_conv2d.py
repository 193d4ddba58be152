"""Convolutions whose backward pass uses a part of their channels or positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from filigree.modes import outside_graphs
from filigree.nn.asymmetric.asymmetric_linear import Asymmetrical, autocast, with_rule
from filigree.nn.asymmetric.sparsification import Sparsification
from filigree.nn.drop_in import DropIn
from filigree.ops.once_differentiable import once_differentiable


class AsymmetricConv2d(Asymmetrical, DropIn, nn.Conv2d, replaces=(nn.Conv2d,)):
    """`nn.Conv2d` with an exact forward and a sparsified backward pass: `AsymmetricLinear` for maps.

    A neuron is an output channel of a sample, its attribute the Euclidean norm of its map of sensitivities (an input
    channel's likewise; the perceptron adjoint of an input channel are the norms of its kernels); with
    `per="positions"` every number of the map is a neuron of its own. Chosen for the whole batch (`unified`, by
    channels) the products are those of a smaller convolution; otherwise they are dense ones on masked maps, which saves
    nothing. Dense equivalent: `dense()`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.is_exact(x):
            return super().forward(x)
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = nn.functional.pad(x, self._reversed_padding_repeated_twice, mode=mode), [0, 0]
        else:
            padding = list(self.padding)
        if x.dim() == 3:
            return _run(x.unsqueeze(0), self.weight, self.bias, self, padding).squeeze(0)
        return _run(x, self.weight, self.bias, self, padding)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", {self.config.label()}, per={self.config.per}"


@outside_graphs
def _run(x: Tensor, weight: Tensor, bias: Tensor | None, owner: AsymmetricConv2d, padding: list[int]) -> Tensor:
    return with_rule(_AsymmetricConvolution.apply, *autocast(x, weight, bias), owner, padding)


class _AsymmetricConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, owner: Any, padding: list[int]) -> Tensor:
        rule, per = owner.rule, owner.config.per
        y = nn.functional.conv2d(x, weight, bias, owner.stride, padding, owner.dilation, owner.groups)
        kept = None if rule.forward is None else _mask(rule.forward, y, per, False)
        if kept is not None:
            y.mul_(kept)
        ctx.rule, ctx.per, ctx.owner, ctx.padding, ctx.shape = rule, per, owner, padding, x.shape
        ctx.watched, ctx.inputs = owner.watched, None
        if ctx.watched is not None:
            ctx.watched.saw_forward(None if kept is None else _channels(kept, len(x)), *y.shape[:2])
        ctx.narrow = None
        if rule.inputs is not None:
            mask = _mask(rule.inputs, x, per, rule.unified)
            ctx.inputs = _channels(mask, len(x)) if ctx.watched is not None else None
            if rule.unified and per == "channels" and owner.groups == 1:
                ctx.narrow = mask.flatten().nonzero().squeeze(1)
                x = x.index_select(1, ctx.narrow)
            else:
                x = x * mask
        ctx.save_for_backward(x, weight, kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kept = ctx.saved_tensors
        rule, owner, per = ctx.rule, ctx.owner, ctx.per
        need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
        delta = dy if kept is None else dy * kept
        union = rule.neurons == "union" and rule.weights is not None and rule.sensitivity is not None
        whole, chosen, mask = delta, None, None
        if rule.sensitivity is not None:
            mask = _mask(rule.sensitivity, delta, per, rule.unified)
            if rule.unified and per == "channels" and owner.groups == 1 and not union:
                chosen = mask.flatten().nonzero().squeeze(1)
                delta = delta.index_select(1, chosen)
            else:
                delta = delta * mask
        adjoint = _adjoint(rule.weights, weight)
        if ctx.watched is not None:
            by_weights = None if rule.weights is None else adjoint.flatten(2).any(2)
            neurons = None if mask is None else _channels(mask, len(dy))
            ctx.watched.saw_backward(rule.neurons, neurons, ctx.inputs, weight.shape[1], by_weights)
        if union:
            return *_union(ctx, whole, delta, x, weight, adjoint), None, None
        small, back = (weight, adjoint) if chosen is None else (weight[chosen], adjoint[chosen])
        dx = dw = db = None
        if need_input:
            dx = _gradients(ctx, delta, None, back, [True, False])[0]
        if need_weight:
            dw = _weight_gradient(ctx, delta, x, small)
            if chosen is not None:
                dw = dw.new_zeros(weight.shape).index_copy_(0, chosen, dw)
        if need_bias:
            db = delta.sum((0, 2, 3))
            if chosen is not None:
                db = db.new_zeros(len(weight)).index_copy_(0, chosen, db)
        return dx, dw, db, None, None


def _union(
    ctx: Any, delta: Tensor, kept: Tensor, x: Tensor, weight: Tensor, adjoint: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """A kernel takes part if its output channel was chosen by sensitivity (`kept` of `delta`) or among those that its
    input channel feeds (Srivastava 2022, eq. 8.3; 8.5 for dL/dW)."""
    chosen = adjoint.flatten(2).any(2)
    dx = dw = db = None
    if ctx.needs_input_grad[0]:
        rest = weight * ~chosen[:, :, None, None]
        dx = _gradients(ctx, delta, None, adjoint, [True, False])[0]
        dx = dx + _gradients(ctx, kept, None, rest, [True, False])[0]
    if ctx.needs_input_grad[1]:
        every, some = (_weight_gradient(ctx, part, x, weight) for part in (delta, kept))
        dw = torch.where(chosen[:, :, None, None], every, some)
    if ctx.needs_input_grad[2]:
        db = torch.where(chosen.any(1), delta.sum((0, 2, 3)), kept.sum((0, 2, 3)))
    return dx, dw, db


def _weight_gradient(ctx: Any, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Of `weight`'s shape; zero at the input channels that were not kept."""
    if ctx.narrow is None:
        dw: Tensor = _gradients(ctx, delta, x, weight, [False, True])[1]
        return dw
    dw = _gradients(ctx, delta, x, weight[:, ctx.narrow], [False, True])[1]
    return dw.new_zeros(weight.shape).index_copy_(1, ctx.narrow, dw)


def _gradients(ctx: Any, delta: Tensor, x: Tensor | None, weight: Tensor, wanted: list[bool]) -> Any:
    owner = ctx.owner
    if x is None:
        x = delta.new_empty(1).expand(ctx.shape)  # only its shape is read
    return torch.ops.aten.convolution_backward(
        delta, x, weight, None, owner.stride, ctx.padding, owner.dilation, False, [0, 0], owner.groups, [*wanted, False]
    )


def _mask(function: Sparsification, maps: Tensor, per: str, unified: bool) -> Tensor:
    """Where `maps` `(batch, channels, height, width)` is kept, to multiply by."""
    if per == "channels":
        norms = maps.flatten(2).norm(dim=2)
        kept = function(norms.sum(0, keepdim=True) if unified else norms) != 0
        return kept[:, :, None, None]
    flat = maps.flatten(1)
    kept = function(flat.abs().sum(0, keepdim=True) if unified else flat) != 0
    return kept.view(-1, *maps.shape[1:])


def _channels(mask: Tensor, batch: int) -> Tensor:
    """`(batch, channels)`: whether anything of a channel is kept."""
    return mask.flatten(2).any(2).expand(batch, -1)


def _adjoint(function: Sparsification | None, weight: Tensor) -> Tensor:
    """W with, for each input channel, the kernels of the chosen output channels."""
    if function is None:
        return weight
    norms = weight.flatten(2).norm(dim=2)
    return weight * (function(norms.t().contiguous()) != 0).t()[:, :, None, None]
