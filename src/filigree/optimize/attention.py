"""What transformers have beside products with weights, as steps: layer norms and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from filigree.ops.inference import ATTENTION, NORM, Finishing, Step
from filigree.ops.panel_weights import PANEL, padded
from filigree.optimize.drafts import Draft, NotTaken
from filigree.optimize.layouts import Layout, by_pixel, numbers_by_pixel
from filigree.optimize.planning import Plan, table


def layer_norm(
    plan: Plan, node: fx.Node, source: fx.Node, normalized_shape: tuple[int, ...], weight: Any, bias: Any, eps: float
) -> Layout:
    count = normalized_shape[-1]
    if len(normalized_shape) != 1 or plan.shape(source)[-1] != count:
        raise NotTaken
    layout, reads = plan.vectors(source)
    sizes = layout.positions.shape[1:-1]
    halo = [(0, 0)] * len(sizes)
    out = by_pixel(plan.span(numbers_by_pixel(count, sizes, halo)), count, sizes, halo)
    factor = torch.ones(count) if weight is None else weight.detach()
    shift = torch.zeros(count) if bias is None else bias.detach()
    step = Step(
        NORM, layout.span, out.span, len(reads), table(reads), table(out.positions[0, 0]), taps=count,
        channels=padded(count), number=eps, work=3 * len(reads) * count,
    )  # fmt: skip
    plan.add(node, Draft(step, finish=Finishing(factor=factor, shift=shift), outputs=count))
    return Layout(out.span, out.positions.movedim(1, -1))


def attention(plan: Plan, node: fx.Node, source: fx.Node, key: Any, value: Any, attn_mask: Any = None,
              dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
              enable_gqa: bool = False) -> Layout:  # fmt: skip
    """`softmax(scale Q K^T) V` of heads that lie beside one another."""
    if attn_mask is not None or dropout_p or is_causal or key not in plan.layouts or value not in plan.layouts:
        raise NotTaken
    layouts = [plan.batch_first(each) for each in (source, key, value)]
    shape = layouts[0].positions.shape
    if len(shape) != 4 or any(layout.positions.shape != shape for layout in layouts) or shape[-1] % PANEL:
        raise NotTaken
    _, heads, count, width = shape
    q, k, v = (_beginnings(layout.positions[0]) for layout in layouts)
    channels = heads * width
    out = by_pixel(plan.span(count * channels), channels, (count,), [(0, 0)])
    step = Step(
        ATTENTION, layouts[0].span, out.span, count, table(q), table(out.positions[0, 0]), layouts[1].span,
        layouts[2].span, table(torch.cat([k, v])), taps=heads, channels=width,
        number=1 / math.sqrt(width) if scale is None else scale, work=2 * count * count * channels,
    )  # fmt: skip
    plan.add(node, Draft(step))
    del plan.makers[node]  # nothing can be fused into it
    return Layout(out.span, out.positions.view(1, heads, width, count).permute(0, 1, 3, 2))


def _beginnings(positions: Tensor) -> Tensor:
    """Where the numbers of each of `(heads, tokens, width)` begin, which are to lie head by head."""
    heads, _, width = positions.shape
    first = positions[0, :, 0]
    expected = first[None, :, None] + torch.arange(heads)[:, None, None] * width + torch.arange(width)
    if int(positions.min()) < 0 or not torch.equal(expected, positions):
        raise NotTaken
    return first
