"""What transformers have beside products with weights, as steps: layer norms and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from filigree.ops.inference import ATTENTION, NORM, Attention, Finishing, Step
from filigree.ops.panel_weights import padded
from filigree.optimize.constants import constants
from filigree.optimize.drafts import Draft, NotTaken
from filigree.optimize.layouts import Layout
from filigree.optimize.planning import Plan, table

_MOST_NUMBERS = 1 << 24  # of a mask


def layer_norm(
    plan: Plan, node: fx.Node, source: fx.Node, normalized_shape: tuple[int, ...], weight: Any, bias: Any, eps: float
) -> Layout:
    count = normalized_shape[-1]
    if len(normalized_shape) != 1 or plan.shape(source)[-1] != count:
        raise NotTaken
    layout, reads = plan.vectors(source)
    out = plan.fresh(count, layout.positions.shape[1:-1])
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
    """`softmax(scale Q K^T + mask) V` of any heads `(1, ..., tokens, width)`, with a mask that is constant."""
    plain = isinstance(scale, float | int | None) and isinstance(is_causal, bool)
    if dropout_p or not plain or key not in plan.layouts or value not in plan.layouts:
        raise NotTaken
    layouts = [_with_vectors(plan, each) for each in (source, key, value)]
    shape, of_keys, of_values = (layout.positions.shape for layout in layouts)
    same_heads = shape[:-2] == of_keys[:-2] == of_values[:-2] and of_keys[-2] == of_values[-2]
    if not same_heads:
        raise NotTaken
    heads, queries, keys, width = shape[1:-2], shape[-2], of_keys[-2], of_values[-1]
    q, k, v = (layout.positions[0, ..., 0] for layout in layouts)
    bias = _bias(plan, attn_mask, is_causal, (heads, queries, keys))
    strides = _strides(q)
    dims = sorted(range(len(strides)), key=lambda d: -strides[d])  # outputs lie in the order of the queries
    sizes = [(*heads, queries)[d] for d in dims]
    out = plan.fresh(width, sizes)
    positions = out.positions[0].permute(*(1 + dims.index(d) for d in range(len(dims))), 0)[None]
    count = math.prod(heads)
    step = Step(
        ATTENTION, layouts[0].span, out.span, queries, table(q), table(positions[..., 0]), layouts[1].span,
        layouts[2].span, table(torch.cat([k.flatten(), v.flatten()])), taps=count, channels=shape[-1],
        number=1 / math.sqrt(shape[-1]) if scale is None else scale, attention=Attention(keys, width, bias),
        work=count * queries * keys * (shape[-1] + width),
    )  # fmt: skip
    plan.add(node, Draft(step))
    del plan.makers[node]  # nothing can be fused into it
    return Layout(out.span, positions)


def _with_vectors(plan: Plan, node: fx.Node) -> Layout:
    """The layout `(1, ..., width)` of a node, copied where the numbers of a vector do not lie beside one another."""
    layout = plan.rows_first(node)
    positions = layout.positions
    if positions.dim() - layout.merged < 3 or not positions.numel():
        raise NotTaken
    if int(positions.min()) >= 0 and torch.equal(positions[..., :1] + torch.arange(positions.shape[-1]), positions):
        return layout
    copied = plan.gathered(layout, positions.movedim(-1, 1), positions.shape[-1])
    return Layout(copied.span, copied.positions.movedim(1, -1))


def _strides(positions: Tensor) -> list[int]:
    """From the first position to the next one along each dimension."""
    origin = [0] * positions.dim()
    strides = []
    for d, size in enumerate(positions.shape):
        step = [*origin[:d], min(1, size - 1), *origin[d + 1 :]]
        strides.append(int(positions[tuple(step)] - positions[tuple(origin)]))
    return strides


def _bias(plan: Plan, mask: Any, is_causal: bool, sizes: tuple[Any, int, int]) -> Tensor | None:
    """What is added to the products with the keys: `(1 or heads, queries, keys)`, -inf for keys that are left out."""
    heads, queries, keys = sizes
    if mask is None and not is_causal:
        return None
    if is_causal:
        mask = torch.ones(queries, keys, dtype=torch.bool).tril()
    (mask,) = constants(plan, mask)
    if not isinstance(mask, Tensor) or mask.dim() < 2 or mask.dim() > len(heads) + 3:
        raise NotTaken
    if mask.dtype is torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    if mask.dtype is not torch.float32 or (mask.dim() == len(heads) + 3 and len(mask) != 1):
        raise NotTaken
    mask = mask.detach()[0] if mask.dim() == len(heads) + 3 else mask.detach()
    one_for_all = mask.shape[:-2].numel() == 1
    mask = (
        mask.reshape(mask.shape[-2:]).expand(queries, keys)[None] if one_for_all else mask.expand(*heads, queries, keys)
    )
    mask = mask.reshape(-1, queries, keys)
    if mask.numel() > _MOST_NUMBERS or bool((mask.amax(-1) == -torch.inf).any()) or bool(mask.isnan().any()):
        raise NotTaken
    return torch.nn.functional.pad(mask, (0, padded(keys) - keys)).contiguous()
