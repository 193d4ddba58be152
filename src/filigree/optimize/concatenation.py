"""Concatenations along the channels, parts copied that do not lie there already; splits, which copy nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from filigree.ops.inference import MEAN, Step
from filigree.ops.panel_weights import PANEL, padded
from filigree.optimize.drafts import Draft, NotTaken
from filigree.optimize.homes import parts_of
from filigree.optimize.layouts import Layout
from filigree.optimize.planning import Plan, table
from filigree.optimize.tracing import is_indexed


def concatenate(plan: Plan, node: fx.Node, source: fx.Node, dim: int = 0) -> Layout:
    """`torch.cat(tensors, 1)`."""
    tensors: Any = node.args[0]
    if not all(isinstance(each, fx.Node) and each in plan.layouts for each in tensors):
        raise NotTaken
    if dim % len(plan.shape(source)) != 1:
        raise NotTaken
    parts = [plan.pixels(each) for each in tensors]
    if node not in plan.homes and (joined := _side_by_side(parts)) is not None:
        return joined
    counts = [part.positions.shape[1] for part in parts]
    out = plan.homes.get(node) or plan.pixels_for(node, sum(counts), parts[0].positions.shape[2:])
    ends_whole = sum(counts[:-1]) % PANEL == 0  # then the last part brings the zeros after it
    clear = plan.clears(out, has_gaps=not ends_whole)
    for number, (part, place) in enumerate(zip(parts, parts_of(plan.traced, node, out), strict=True), 1):
        if part.span == place.span and torch.equal(part.positions, place.positions):
            continue
        reads = part.positions[0, 0].reshape(-1)
        channels = padded(counts[-1]) if ends_whole and number == len(parts) else part.positions.shape[1]
        step = Step(
            MEAN, part.span, out.span, len(reads), table(reads), table(place.positions[0, 0]), channels=channels,
            clear=clear, work=part.positions.numel() // 4,
        )  # fmt: skip
        clear = False
        plan.drafts.append(Draft(step, outputs=channels))
    return out


def _side_by_side(parts: list[Layout]) -> Layout | None:
    """What parts are that lie beside one another already, as the first ones of a larger concatenation do."""
    first, wholes = parts[0], [part.whole for part in parts if part.whole is not None]
    if len(wholes) < len(parts) or any(part.span != first.span or part.halo != first.halo for part in parts):
        return None
    whole = torch.cat(wholes, 1)
    count = torch.arange(whole.shape[1]).view(1, -1, *[1] * (whole.dim() - 2))
    if not torch.equal(whole, whole[:, :1] + count):
        return None
    return replace(first, positions=torch.cat([part.positions for part in parts], 1), whole=whole)


def split(plan: Plan, node: fx.Node, source: fx.Node, sizes: Any, dim: int = 0) -> list[Layout]:
    """`torch.split` and `torch.chunk` along any dimension but that of the samples."""
    layout = plan.batch_first(source)
    if not dim % layout.positions.dim() or not is_indexed(node, 1):
        raise NotTaken
    name = node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))
    return [layout.viewed(part, 0) for part in getattr(layout.positions, name)(sizes, dim)]


def unbind(plan: Plan, node: fx.Node, source: fx.Node, dim: int = 0) -> list[Layout]:
    """`torch.unbind` along any dimension but that of the samples."""
    layout = plan.layouts[source]
    if not isinstance(layout, Layout) or not is_indexed(node, 1):
        raise NotTaken
    dim %= layout.positions.dim()
    if dim == layout.batch_dim:
        raise NotTaken
    return [layout.viewed(part, layout.batch_dim - (dim < layout.batch_dim)) for part in layout.positions.unbind(dim)]


def first_tensor(node: fx.Node) -> Any:
    """What a node reads first, of a list its first tensor."""
    first = node.args[0] if node.args else None
    return first[0] if isinstance(first, list | tuple) and first else first
