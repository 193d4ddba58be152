"""Tensors that are the same for each sample: steps read them as they do other numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx
from torch.nn import functional as F

from filigree.ops.panel_weights import padded
from filigree.optimize.drafts import NotTaken
from filigree.optimize.layouts import Layout, by_pixel
from filigree.optimize.planning import Plan


def constants(plan: Plan, *parts: Any) -> list[Any]:
    """What a function is called with, tensors that are the same for all samples in place of their nodes."""
    values = [_value(plan, part) for part in parts]
    for part, value in zip(parts, values, strict=True):
        if part is not None and not isinstance(value, Tensor | float | int):
            raise NotTaken
    return values


def _value(plan: Plan, part: Any) -> Any:
    constant = plan.traced.constant(part)
    return plan.traced.same_for_all(part) if constant is None and isinstance(part, fx.Node) else constant


def pixels_of(plan: Plan, given: fx.Node | Tensor, shape: Sequence[int]) -> Layout:
    """The layout `(1, channels, ...)` of a node, or of a constant that is broadcast to a shape."""
    if isinstance(given, fx.Node):
        return plan.pixels(given)
    numbers = given.detach().float().expand(shape).movedim(1, -1)
    channels, sizes = numbers.shape[-1], numbers.shape[1:-1]
    span = plan.span(0)
    plan.constants[span] = F.pad(numbers, (0, padded(channels) - channels)).flatten()
    return by_pixel(span, channels, sizes, [(0, 0)] * len(sizes))


def vectors_of(plan: Plan, given: fx.Node | Tensor, shape: Sequence[int]) -> tuple[Layout, Tensor]:
    """The layout `(1, ..., channels)` of a node, or of a constant that is broadcast to a shape; where each of its
    vectors begins."""
    if isinstance(given, fx.Node):
        return plan.vectors(given)
    last_first = given.detach().float().expand(shape).movedim(-1, 1)
    pixels = pixels_of(plan, last_first, last_first.shape)
    layout = Layout(pixels.span, pixels.positions.movedim(1, -1))
    return layout, layout.positions[0, ..., 0].reshape(-1)
