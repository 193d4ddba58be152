"""Refuse a forward that changes a tensor in place which is read again later: a program in C keeps that as it was."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set

from torch import fx, nn

from filigree.export.c.layers import steps
from filigree.export.c.recurrent import Last
from filigree.ops.c_steps import Reshape, refuse


def check_in_place(graph: fx.Graph, modules: Mapping[fx.Node, nn.Module], shapes: Set[fx.Node]) -> None:
    """Look at each operation in place of a graph, and at who reads that memory after it.

    Args:
        modules: what stands for each node that is no sum. shapes: nodes that ask for the batch size only.

    Raises:
        ValueError: what is changed is read again, other than as what the operation returns.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, fx.Node] = {}  # the first node that has the memory of this one
    for node in order:
        module = modules.get(node)
        reads = [n for n in node.all_input_nodes if n not in shapes]
        memory[node] = node
        if not reads or node in shapes or node.op == "output":
            continue
        if not _is_in_place(node, module):
            memory[node] = memory[reads[0]] if module is not None and _passes_on(module) else node
            continue
        shared = [other for other in memory if memory[other] is memory[reads[0]] and other not in shapes]
        later = {user for other in shared for user in other.users if order[user] > order[node] and user not in shapes}
        if later:
            reader = min(later, key=order.__getitem__)
            name = str(node.target) if node.op == "call_module" else node.name
            raise refuse(name, f"changes in place what {reader.name!r} reads later. Have it return a new tensor")
        memory[node] = memory[reads[0]]


def _is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if node.target in (operator.iadd, "__iadd__"):
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    called = node.op != "call_module" and name.endswith("_") and not name.endswith("__")
    return called or bool(node.kwargs.get("inplace")) or bool(getattr(module, "inplace", False))


def _passes_on(module: nn.Module) -> bool:
    """Tell whether a module returns the memory that it reads: it has no weights, and nothing to compute."""
    has_weights = next(module.parameters(), None) is not None
    return not has_weights and all(isinstance(step, Reshape | Last) for step in steps(module, ""))
