"""Where the parts of a concatenation along the channels are written at once, so that it need not copy them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from filigree.ops.panel_weights import PANEL
from filigree.optimize.layouts import Layout

if TYPE_CHECKING:
    from filigree.optimize.planning import Plan

CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


def home_of(plan: Plan, node: fx.Node, sizes: Sequence[int]) -> Layout | None:
    """The place of a node's numbers in the largest concatenation they go to, through what leaves them where they are.

    Steps write whole panels: all parts but the last must have a multiple of 16 channels.
    """
    goals = list(_concatenations(plan, node))
    if not goals:
        return None
    goal, part = max(goals, key=lambda pair: plan.shape(pair[0])[1])
    if goal not in plan.homes:
        plan.homes[goal] = plan.pixels_for(goal, plan.shape(goal)[1], sizes)
    return parts_of(plan, goal, plan.homes[goal])[parts(goal).index(part)]


def parts(concatenation: fx.Node) -> list[Any]:
    given: Any = concatenation.args[0]
    return list(given)


def parts_of(plan: Plan, concatenation: fx.Node, layout: Layout) -> list[Layout]:
    """The layouts of its parts within that of a concatenation, which is pixel by pixel."""
    assert layout.whole is not None
    counts = [plan.shape(part)[1] for part in parts(concatenation)]
    pieces = zip(layout.positions.split(counts, 1), layout.whole.split(counts, 1), strict=True)
    return [replace(layout, positions=positions, whole=whole) for positions, whole in pieces]


def _concatenations(plan: Plan, node: fx.Node) -> Any:
    """Those that a node's numbers go to, each with its part: the node, or what makes numbers of the node's alone."""
    for user in node.users:
        if user.op == "call_function" and user.target in CONCATENATIONS and _takes_panels(plan, user):
            yield user, node
    if len(node.users) == 1:
        (user,) = node.users
        if user in plan.traced.single and plan.passes_on(user, node):
            yield from _concatenations(plan, user)


def _takes_panels(plan: Plan, user: fx.Node) -> bool:
    given = user.args[0]
    dim = user.kwargs.get("dim", user.args[1] if len(user.args) > 1 else 0)
    if not isinstance(given, list | tuple) or not all(isinstance(each, fx.Node) for each in given):
        return False
    if not all(each in plan.traced.single for each in (user, *given)) or not isinstance(dim, int):
        return False
    dims = len(plan.shape(user))
    return dims > 2 and dim % dims == 1 and not any(plan.shape(part)[1] % PANEL for part in parts(user)[:-1])
