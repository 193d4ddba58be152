"""Where the parts of a concatenation along the channels are written at once, so that it need not copy them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from filigree.ops.panel_weights import PANEL
from filigree.optimize.layouts import Layout
from filigree.optimize.tracing import Traced

CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


def goal_of(
    traced: Traced, node: fx.Node, passes_on: Callable[[fx.Node, fx.Node], bool]
) -> tuple[fx.Node, fx.Node] | None:
    """The largest concatenation that a node's numbers go to, and which of its parts they are: the node, or what makes
    numbers of the node's alone, and may write over these.

    Steps write whole panels: all parts but the last must have a multiple of 16 channels; where a concatenation's have
    not, its copies leave gaps that only memory of its own is cleared for.
    """
    if node.target in CONCATENATIONS and not _takes_panels(traced, node):
        return None
    goals = _goals(traced, node, passes_on)
    return max(goals, key=lambda goal: traced.single[goal[0]].shape[1], default=None)


def parts(concatenation: fx.Node) -> list[Any]:
    """What is given to it by position: the nodes of a list, else nothing."""
    given = concatenation.args[0] if concatenation.args else None
    return list(given) if isinstance(given, list | tuple) else []


def parts_of(traced: Traced, concatenation: fx.Node, layout: Layout) -> list[Layout]:
    """The layouts of its parts within that of a concatenation, which is pixel by pixel."""
    assert layout.whole is not None
    counts = [traced.single[part].shape[1] for part in parts(concatenation)]
    pieces = zip(layout.positions.split(counts, 1), layout.whole.split(counts, 1), strict=True)
    return [replace(layout, positions=positions, whole=whole) for positions, whole in pieces]


def _goals(traced: Traced, node: fx.Node, passes_on: Any) -> Iterator[tuple[fx.Node, fx.Node]]:
    for user in node.users:
        if user.target in CONCATENATIONS and _takes_panels(traced, user):
            yield user, node
    if len(node.users) == 1 and node.target not in CONCATENATIONS:  # whose numbers are those of its parts
        (user,) = node.users
        if user in traced.single and passes_on(user, node):
            yield from _goals(traced, user, passes_on)


def _takes_panels(traced: Traced, concatenation: fx.Node) -> bool:
    """Whether it is along the channels of images, and all parts but the last fill whole panels."""
    given = parts(concatenation)
    args = concatenation.args
    dim = concatenation.kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if not given or not all(isinstance(each, fx.Node) and each in traced.single for each in (concatenation, *given)):
        return False
    dims = traced.single[concatenation].dim()
    if dims < 3 or not isinstance(dim, int) or dim % dims != 1:
        return False
    return not any(traced.single[part].shape[1] % PANEL for part in given[:-1])
