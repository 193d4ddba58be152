"""What only changes the order and the shape of numbers: it is done to their positions, and nothing is copied."""

from __future__ import annotations

import itertools
import operator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from filigree.optimize.drafts import NotTaken
from filigree.optimize.layouts import ZERO, Layout
from filigree.optimize.planning import Plan
from filigree.optimize.tracing import is_indexed
from filigree.optimize.windows import zeros_around

_LIKE_OTHERS = ("reshape_as", "view_as")  # which ask a tensor for its shape alone


def view(plan: Plan, node: fx.Node, source: fx.Node) -> Any:
    """Done to the positions of one sample and of two, to see that it keeps these apart."""
    layout = plan.layouts[source]
    if not isinstance(layout, Layout):  # of a recurrent layer's results
        return layout[operator.index(node.args[1])]  # type: ignore[arg-type]
    given: list[fx.Node] = []
    fx.node.map_arg((node.args[1:], node.kwargs), given.append)
    sizes = plan.traced.sizes
    if node.target not in _LIKE_OTHERS and not all(each in sizes for each in given):  # else they depend on numbers
        raise NotTaken
    if node.target is operator.getitem and any(sizes[each] for each in given):
        raise NotTaken  # an index that depends on the size of the batch may be the same for one and two samples

    def seen(positions: Tensor, values: dict[fx.Node, Any]) -> Tensor:
        args, kwargs = fx.node.map_arg((node.args[1:], node.kwargs), lambda n: values[n])
        if node.target not in _LIKE_OTHERS and any(isinstance(arg, Tensor) for arg in args):
            raise NotTaken
        if node.op == "call_module":
            return plan.traced.module_of(node)(positions)
        if node.op == "call_method":
            return getattr(positions, str(node.target))(*args, **kwargs)
        return node.target(positions, *args, **kwargs)  # type: ignore[operator]

    if (samples := plan.traced.samples(node)) is None:
        raise NotTaken
    dim, rows = samples
    before = layout.of_tensor
    positions = seen(before, plan.traced.single)
    number = int(before.max()) + 1 if before.numel() else 0  # of the other sample's first
    two = seen(torch.cat([before, _beyond(before, number)], layout.batch_dim), plan.traced.double)
    if not torch.equal(two, torch.cat([positions, _beyond(positions, number)], dim)):
        raise NotTaken
    _pass_on(plan, node, source)
    if dim == layout.batch_dim and torch.equal(positions, before):
        return layout
    positions = positions.unflatten(dim, (1, rows)) if rows > 1 else positions
    return replace(layout.viewed(positions, dim), merged=rows > 1)


def is_of_einops(target: Any) -> bool:
    """Whether it is einops' `rearrange` or `repeat`, or its layer `Rearrange`."""
    kind = target if callable(target) and not isinstance(target, nn.Module) else type(target)
    module, name = str(getattr(kind, "__module__", "")), str(getattr(kind, "__name__", ""))
    return module.split(".")[0] == "einops" and name in ("rearrange", "repeat", "Rearrange")


def _beyond(positions: Tensor, number: int) -> Tensor:
    """Those of another sample; what lies nowhere does so there."""
    return torch.where(positions < 0, positions, positions + number)


def _pass_on(plan: Plan, node: fx.Node, source: fx.Node) -> None:
    """What follows the node can be fused into what made its source, if nothing else reads that."""
    if source in plan.makers and len(source.users) == 1:
        plan.makers[node] = plan.makers[source]


def flattened(plan: Plan, node: fx.Node, source: fx.Node, module: nn.Flatten) -> Layout:
    layout = plan.batch_first(source)
    _pass_on(plan, node, source)
    return layout.viewed(module(layout.positions), 0)


def same(plan: Plan, node: fx.Node, source: fx.Node, *_: Any) -> Any:
    _pass_on(plan, node, source)
    return plan.layouts[source]


def contiguous(plan: Plan, node: fx.Node, source: fx.Node) -> Layout:
    layout = plan.rows_first(source)
    return layout if layout.positions.is_contiguous() else layout.viewed(layout.positions.contiguous(), 0)


def pad(plan: Plan, node: fx.Node, source: fx.Node) -> Layout:
    layout = plan.batch_first(source)
    around = zeros_around(node, len(plan.shape(source)))
    if around is None or any(around[0]):
        raise NotTaken
    if not any(map(any, around)):
        return cast(Layout, same(plan, node, source))
    if not any(around[1]):
        return layout.viewed(layout.with_zeros(around[2:]), 0)
    pairs = list(itertools.chain(*reversed(around)))
    return layout.viewed(nn.functional.pad(layout.positions, pairs, value=ZERO), 0)


def split(plan: Plan, node: fx.Node, source: fx.Node, sizes: Any, dim: int = 0) -> list[Layout]:
    """`torch.split` and `torch.chunk` along any dimension but that of the samples."""
    layout, along = _along(plan, node, source, dim)
    name = node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))
    return [layout.viewed(part, layout.batch_dim) for part in getattr(layout.positions, name)(sizes, along)]


def unbind(plan: Plan, node: fx.Node, source: fx.Node, dim: int = 0) -> list[Layout]:
    """`torch.unbind` along any dimension but that of the samples."""
    layout, along = _along(plan, node, source, dim)
    before = layout.batch_dim - (along < layout.batch_dim)
    return [layout.viewed(part, before) for part in layout.positions.unbind(along)]


def _along(plan: Plan, node: fx.Node, source: fx.Node, dim: int) -> tuple[Layout, int]:
    """The layout of what is split, and along which dimension of its positions."""
    layout = plan.layouts[source]
    if not isinstance(layout, Layout) or not is_indexed(node, 1):
        raise NotTaken
    along = layout.dim_of(dim)
    if along == layout.batch_dim:
        raise NotTaken
    return layout, along
