"""From a model's graph to one in which parts are calls of the kernel."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx

from filigree.optimize.concatenation import first_tensor
from filigree.optimize.int8_errors import Int8Errors
from filigree.optimize.layouts import Layout
from filigree.optimize.nodes import take
from filigree.optimize.planning import Plan
from filigree.optimize.runtime import Program
from filigree.optimize.tracer import attribute
from filigree.optimize.tracing import Traced


def plans_of(traced: Traced, left: set[fx.Node], errors: Int8Errors) -> list[Plan]:
    """Plans for as many nodes of a graph as can be taken, but for those that are to be `left`.

    A plan reads one node only, so that it can run as soon as that one is there.
    """
    plans: list[Plan] = []
    for node in traced.graph.nodes:
        first = first_tensor(traced, node)
        if (
            node in left
            or node.op not in ("call_module", "call_function", "call_method")
            or not isinstance(first, fx.Node)
        ):
            continue
        if not any(take(plan, node) for plan in plans if first in plan.layouts):
            plan = Plan.of(traced, first, errors)
            if plan is not None and take(plan, node):
                plans.append(plan)
    return [plan for plan in plans if any(draft.layer is not None for draft in plan.drafts)]


def graph_of(traced: Traced, plans: Sequence[Plan], chunk: int) -> fx.GraphModule:
    """The graph with these plans as calls, dense layers where they are faster, and without what is not needed then."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(traced.graph, copies))
    modules: dict[str, Any] = {}
    taken_by = {node: plan.source for plan in plans for node in plan.nodes}
    acting = [node for node in traced.graph.nodes if traced.acts(node) and node not in taken_by]
    read = _read(acting, taken_by)
    for number, plan in enumerate(plans):
        outputs = [node for node in plan.nodes if isinstance(plan.layouts[node], Layout) and node in read]
        name = f"part{number}"
        modules[name] = Program(plan.program(outputs, chunk), [plan.layouts[node] for node in outputs])
        after = copies[plan.source]
        if after.op == "placeholder":  # all of them stand first
            after = [node for node in graph.nodes if node.op == "placeholder"][-1]
        with graph.inserting_after(after):
            call = graph.call_module(name, (copies[plan.source],))
        call.meta.clear()
        before = call
        for index, node in enumerate(outputs):
            value = call
            if len(outputs) > 1:
                with graph.inserting_after(before):
                    before = value = graph.call_function(operator.getitem, (call, index))
            copies[node].replace_all_uses_with(value)
            copies[node] = value  # another plan may read it
    kept = {copies.get(node) for node in acting}
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op == "output" or node in kept)
    for node in graph.nodes:
        if node.op == "call_module" and str(node.target) not in modules:
            name = str(node.target)
            modules[name] = traced.dense[name] if name in traced.dense else traced.root.get_submodule(name)
        elif node.op == "get_attr":
            modules[str(node.target)] = attribute(traced.root, str(node.target))
    return fx.GraphModule(modules, graph)


def _read(acting: Sequence[fx.Node], sources: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    """The nodes whose values are needed between the plans, each of which reads its source alone: what only asks for the
    size of a tensor within a plan is not."""
    read, left = set[fx.Node](), list(acting)
    while left:
        node = left.pop()
        if node not in read:
            read.add(node)
            left += [sources[node]] if node in sources else node.all_input_nodes
    return read
