"""Sums, differences, products and quotients: of two tensors, or of one and a constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from filigree.ops.inference import MINUS, TIMES, Step
from filigree.ops.panel_weights import padded
from filigree.optimize.constants import constants, pixels_of, vectors_of
from filigree.optimize.drafts import Draft, NotTaken
from filigree.optimize.layouts import Layout
from filigree.optimize.planning import Plan, table


def pairs(kind: int, sign: int = 1) -> Callable[..., Layout]:
    """A sum or a product (`sign` -1: a difference or a quotient) of two nodes, or of one and a constant."""

    def handle(plan: Plan, node: fx.Node, source: fx.Node) -> Layout:
        if len(node.args) != 2 or node.kwargs:
            raise NotTaken
        other = node.args[1]
        if isinstance(other, fx.Node) and other in plan.layouts:
            if sign < 0 and kind == TIMES:
                raise NotTaken
            return _combined(plan, node, kind if sign > 0 else MINUS)
        return _with_constant(plan, node, source, kind, sign, constants(plan, other)[0])

    return handle


def _with_constant(plan: Plan, node: fx.Node, source: fx.Node, kind: int, sign: int, constant: Any) -> Layout:
    """The sum with a constant, or the product: part of a layer where that is one number, or one for each channel or
    each place along the last dimension, else as with any other numbers."""
    shape, value = plan.shape(source), torch.as_tensor(constant, dtype=torch.float32).detach()
    value = (1 / value if kind == TIMES else -value) if sign < 0 else value
    if not bool(value.isfinite().all()):  # an infinite factor would meet the zeros between and beside the numbers
        raise NotTaken
    sizes = [1] * (len(shape) - value.dim()) + list(value.shape)
    if len(sizes) > len(shape) or any(size not in (1, full) for size, full in zip(sizes, shape, strict=True)):
        raise NotTaken
    along = [d for d, size in enumerate(sizes) if size != 1]
    channels = plan.rows_first(source).is_by_pixel or bool(plan.open_step(source, 1))
    dim = along[0] if along else 1 if channels else len(shape) - 1
    is_last = dim == len(shape) - 1 and plan.has_vectors(source)
    if len(along) > 1 or dim < 1 or not (len(shape) == 2 or (channels if dim == 1 else is_last)):
        return _combined(plan, node, kind, value)
    value = value.reshape(-1).expand(shape[dim])
    if kind == TIMES:
        return plan.affine(node, source, value, torch.zeros(shape[dim]), dim)
    return plan.affine(node, source, torch.ones(shape[dim]), value, dim)


def negative(plan: Plan, node: fx.Node, source: fx.Node) -> Layout:
    return _with_constant(plan, node, source, TIMES, 1, -1.0)


def _combined(plan: Plan, node: fx.Node, kind: int, constant: Tensor | None = None) -> Layout:
    """Of two nodes, of which one may have a number a channel for all pixels or vectors; or of one and a constant."""
    pair = [arg for arg in node.args if isinstance(arg, fx.Node) and arg in plan.layouts]
    if len(pair) != (2 if constant is None else 1):
        raise NotTaken
    source, *rest = sorted(pair, key=lambda arg: -plan.shape(arg).numel())
    if kind == MINUS and source is not pair[0]:
        raise NotTaken
    shape, wanted = plan.shape(source), [plan.shape(each) for each in rest]
    other = rest[0] if constant is None else constant
    if wanted in ([], [shape], [(*[1] * (len(shape) - 1), shape[-1])]) and all(map(plan.has_vectors, pair)):
        (a, reads), (b, others) = (vectors_of(plan, each, shape) for each in (source, other))
        channels, others = a.positions.shape[-1], others.expand_as(reads)
        out = plan.fresh(channels, a.positions.shape[1:-1])
        result = Layout(out.span, out.positions.movedim(1, -1))
    else:
        if wanted not in ([], [shape], [(*shape[:2], *[1] * len(shape[2:]))]):
            raise NotTaken
        a, b = (pixels_of(plan, each, shape) for each in (source, other))
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
