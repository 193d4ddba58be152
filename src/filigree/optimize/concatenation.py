"""Concatenations along the channels as steps, each part copied to where it belongs; splits, which copy nothing."""

from __future__ import annotations

from typing import Any

from torch import fx

from filigree.ops.inference import MEAN, Step
from filigree.ops.panel_weights import PANEL
from filigree.optimize.drafts import Draft, NotTaken
from filigree.optimize.layouts import Layout
from filigree.optimize.planning import Plan, is_indexed, table


def concatenate(plan: Plan, node: fx.Node, source: fx.Node, dim: int = 0) -> Layout:
    """`torch.cat(tensors, 1)`."""
    tensors: Any = node.args[0]
    if not all(isinstance(each, fx.Node) and each in plan.layouts for each in tensors):
        raise NotTaken
    if dim % len(plan.shape(source)) != 1:
        raise NotTaken
    parts = [plan.pixels(each) for each in tensors]
    channels = [part.positions.shape[1] for part in parts]
    total, sizes = sum(channels), parts[0].positions.shape[2:]
    begins = [sum(channels[:number]) for number in range(len(parts))]
    out = plan.pixels_for(node, total, sizes)
    clear = out.has_halo or total % PANEL > 0  # once, before all of them
    for part, begin, count in zip(parts, begins, channels, strict=True):
        reads = part.positions[0, 0].reshape(-1)
        step = Step(
            MEAN, part.span, out.span, len(reads), table(reads), table(out.positions[0, 0] + begin),
            channels=count, clear=clear and not begin, work=part.positions.numel() // 4,
        )  # fmt: skip
        plan.drafts.append(Draft(step, outputs=count))
    return out


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
