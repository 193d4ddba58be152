"""Sums, differences, products and quotients: of two tensors, or of one and a constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from filigree.ops.inference import MINUS, TIMES, Step
from filigree.ops.panel_weights import padded
from filigree.optimize.drafts import Draft, NotTaken
from filigree.optimize.layouts import Layout, by_pixel
from filigree.optimize.planning import Plan, table


def constants(plan: Plan, *parts: Any) -> list[Any]:
    """What a function is called with, tensors that depend on no input in place of their nodes."""
    values = [plan.traced.constant(part) for part in parts]
    for part, value in zip(parts, values, strict=True):
        if part is not None and not isinstance(value, Tensor | float | int):
            raise NotTaken
    return values


def pairs(kind: int, sign: int = 1) -> Callable[..., Layout]:
    """A sum or a product (`sign` -1: a difference or a quotient) of two nodes, or of one and a constant."""

    def handle(plan: Plan, node: fx.Node, source: fx.Node) -> Layout:
        if len(node.args) != 2 or node.kwargs:
            raise NotTaken
        other = node.args[1]
        if isinstance(other, fx.Node) and other not in plan.traced.constants:
            if sign < 0 and kind == TIMES:
                raise NotTaken
            return _combined(plan, node, kind if sign > 0 else MINUS)
        return _with_constant(plan, node, source, kind, sign, constants(plan, other)[0])

    return handle


def _with_constant(plan: Plan, node: fx.Node, source: fx.Node, kind: int, sign: int, constant: Any) -> Layout:
    """The sum with a number, or with one for each channel or each place along the last dimension; or the product."""
    shape, value = plan.shape(source), torch.as_tensor(constant, dtype=torch.float32).detach()
    sizes = [1] * (len(shape) - value.dim()) + list(value.shape)
    along = [d for d, size in enumerate(sizes) if size != 1]
    channels = plan.batch_first(source).is_by_pixel or bool(plan.open_step(source, 1))
    dim = along[0] if along else 1 if channels else len(shape) - 1
    if len(sizes) > len(shape) or len(along) > 1 or not 1 <= dim < len(shape) or (along and sizes[dim] != shape[dim]):
        raise NotTaken
    if len(shape) > 2 and not (channels if dim == 1 else dim == len(shape) - 1 and plan.has_vectors(source)):
        raise NotTaken
    value = value.reshape(-1).expand(shape[dim])
    value = 1 / value if kind == TIMES and sign < 0 else value
    if not bool(value.isfinite().all()):  # an infinite factor would meet the zeros between and beside the numbers
        raise NotTaken
    if kind == TIMES:
        return plan.affine(node, source, value, torch.zeros(shape[dim]), dim)
    return plan.affine(node, source, torch.ones(shape[dim]), sign * value, dim)


def negative(plan: Plan, node: fx.Node, source: fx.Node) -> Layout:
    return _with_constant(plan, node, source, TIMES, 1, -1.0)


def _combined(plan: Plan, node: fx.Node, kind: int) -> Layout:
    """Of two nodes, of which one may have a number a channel for all pixels."""
    pair = [arg for arg in node.args if isinstance(arg, fx.Node) and arg in plan.layouts]
    if len(node.args) != 2 or len(pair) != 2 or node.kwargs:
        raise NotTaken
    source, other = sorted(pair, key=lambda arg: -plan.shape(arg).numel())
    if kind == MINUS and source is not pair[0]:
        raise NotTaken
    shapes = plan.shape(source), plan.shape(other)
    if shapes[0] == shapes[1] and plan.has_vectors(source) and plan.has_vectors(other):
        (a, reads), (b, others) = plan.vectors(source), plan.vectors(other)
        channels, sizes = a.positions.shape[-1], a.positions.shape[1:-1]
        out = by_pixel(plan.span(a.positions.numel()), channels, sizes, [(0, 0)] * len(sizes))
        result = Layout(out.span, out.positions.movedim(1, -1))
    else:
        if shapes[0] != shapes[1] and shapes[1] != (*shapes[0][:2], *[1] * len(shapes[0][2:])):
            raise NotTaken
        a, b = plan.pixels(source), plan.pixels(other)
        reads = a.positions[0, 0].reshape(-1)
        others = b.positions[0, 0].expand(a.positions.shape[2:]).reshape(-1)
        channels = a.positions.shape[1]
        result = out = plan.pixels_for(node, channels, a.positions.shape[2:])
    step = Step(
        kind, a.span, out.span, len(reads), table(reads), table(out.positions[0, 0]), b.span, others=table(others),
        channels=padded(channels), clear=plan.clears(out), work=a.positions.numel() // 4,
    )  # fmt: skip
    plan.add(node, Draft(step, outputs=channels))
    return result
