"""Concatenations: parts are copied that do not lie there already."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from filigree.ops.inference import MEAN, Step
from filigree.ops.panel_weights import PANEL, padded
from filigree.optimize.constants import vectors_of
from filigree.optimize.drafts import Draft, NotTaken
from filigree.optimize.homes import parts_of
from filigree.optimize.layouts import Layout
from filigree.optimize.planning import Plan, table
from filigree.optimize.tracing import Traced


def concatenate(plan: Plan, node: fx.Node, source: fx.Node, dim: int = 0) -> Layout:
    """`torch.cat`: of images along the channels, of vectors along any other dimension."""
    tensors: Any = node.args[0]
    given = [each if each in plan.layouts else plan.traced.same_for_all(each) for each in tensors]
    if any(each is None for each in given):
        raise NotTaken
    nodes, layout = [each for each in given if isinstance(each, fx.Node)], plan.rows_first(source)
    last, along = layout.positions.dim() - 1, layout.dim_of(dim)
    if 0 < along < last and node not in plan.homes and all(map(plan.has_vectors, nodes)):
        return _of_vectors(plan, node, given, along)
    if len(nodes) < len(given) or layout.merged or along != 1:
        raise NotTaken
    parts = [plan.pixels(each) for each in nodes]
    if node not in plan.homes and (joined := _side_by_side(parts)) is not None:
        return joined
    counts = [part.positions.shape[1] for part in parts]
    out = plan.homes.get(node) or plan.pixels_for(node, sum(counts), parts[0].positions.shape[2:])
    ends_whole = sum(counts[:-1]) % PANEL == 0  # then the last part brings the zeros after it
    clear = plan.clears(out, has_gaps=not ends_whole)
    for number, (part, place) in enumerate(zip(parts, parts_of(plan.traced, node, out), strict=True), 1):
        if part.span == place.span and torch.equal(part.positions, place.positions):
            continue
        channels = padded(counts[-1]) if ends_whole and number == len(parts) else part.positions.shape[1]
        _copy(plan, part.span, part.positions[0, 0], out.span, place.positions[0, 0], channels, clear)
        clear = False
    return out


def _of_vectors(plan: Plan, node: fx.Node, given: list[Any], dim: int) -> Layout:
    """Of vectors `(1, ..., channels)`, one after another; some may be constants."""
    shapes = [plan.shape(each) if isinstance(each, fx.Node) else each.shape for each in given]
    channels = shapes[0][-1]
    out = plan.fresh(channels, plan.shape(node)[1:-1])
    positions = out.positions.movedim(1, -1)
    for each, shape, place in zip(given, shapes, positions.split([shape[dim] for shape in shapes], dim), strict=True):
        layout, reads = vectors_of(plan, each, shape)
        _copy(plan, layout.span, reads, out.span, place[..., 0], padded(channels))
    return Layout(out.span, positions)


def _copy(plan: Plan, source: int, reads: Tensor, out: int, writes: Tensor, channels: int, clear: bool = False) -> None:
    """Copy pixels from one span to another."""
    step = Step(
        MEAN, source, out, reads.numel(), table(reads), table(writes), channels=channels, clear=clear,
        work=reads.numel() * channels // 4,
    )  # fmt: skip
    plan.drafts.append(Draft(step, outputs=channels))


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


def first_tensor(traced: Traced, node: fx.Node) -> Any:
    """What a node reads first, of a list the first tensor that is not the same for all samples."""
    first = node.args[0] if node.args else None
    if not isinstance(first, list | tuple) or not first:
        return first
    return next((each for each in first if traced.same_for_all(each) is None), first[0])
