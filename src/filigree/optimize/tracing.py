"""The graph of what a model computes, with the values that its nodes have for an example and for other batches."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from filigree.config import one_line
from filigree.optimize.encoders import plain_call, with_layered_attention
from filigree.preserved import has_hooks
from filigree.rollback import AllOrNothing
from filigree.summary import says


class NotTraceable(Exception):
    """Why a model's graph is not known, in a line."""


class _One(nn.Module):
    """It calls a model with one tensor, all other arguments at their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x)


class _Two(_One):
    def forward(self, x: Any, y: Any) -> Any:  # type: ignore[override]
        return self.model(x, y)


class _Three(_One):
    def forward(self, x: Any, y: Any, z: Any) -> Any:  # type: ignore[override]
        return self.model(x, y, z)


_CALLS = {1: _One, 2: _Two, 3: _Three}


class _Tracer(fx.Tracer):
    """Layers of torch and filigree, and modules with hooks, are nodes; all else is looked into, also encoders."""

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plain = plain_call(m, args, kwargs)
        return super().call_module(m, forward, args, kwargs) if plain is None else plain()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if has_hooks(m):
            return True
        if says(m):
            return not getattr(m, "calls_layers_only", False)
        return m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict)


class Traced:
    """A model's graph.

    `values` are those of its nodes for the example, `single` and `double` those for its first sample, once and twice:
    what differs between these two depends on the batch. `dense`: of layers by name torch's dense ones that are faster.

    Raises:
        NotTraceable: the model's graph is not known, or it does what a graph would not: it returns a container of a
            class of its own, or keeps what it computes.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        if len(inputs) not in _CALLS:
            raise NotTraceable(f"takes {len(inputs)} tensors")
        self.root = _CALLS[len(inputs)](with_layered_attention(model))
        self.root.training = model.training
        self.dense: dict[str, nn.Module] = {}
        try:
            with AllOrNothing(self.root.model, values=False) as before:  # the root has tensors that the forward makes
                drawn = torch.get_rng_state()
                graph = _Tracer(param_shapes_constant=True).trace(self.root)
                if before.has_changed():
                    raise NotTraceable("it keeps what it computes")
                if not torch.equal(drawn, torch.get_rng_state()):
                    raise NotTraceable("it draws random numbers")
            self.module = fx.GraphModule(self.root, graph)
            self.graph = self.module.graph
            self.values = _values(self.module, inputs)
            first = [x[:1] for x in inputs]
            self.single = _values(self.module, first)
            self.double = _values(self.module, [torch.cat([x, x]) for x in first])
            with torch.no_grad():
                alike = _is_alike(self.values[next(reversed(self.graph.nodes))], model(*inputs))
        except Exception as error:  # whatever the model's own code does with what stands for its inputs
            raise NotTraceable(one_line(error)) from error
        if not alike:
            raise NotTraceable("it returns a container of its own kind")
        for node in self.graph.nodes:
            if self._changes_its_input(node) and not self._is_alone(node):
                raise NotTraceable(f"{node.name} changes a tensor in place that others read")
        self.graph.eliminate_dead_code(self._is_needed)  # what asks for a shape to assert something reads no numbers

    def batch_dim(self, node: fx.Node) -> int | None:
        """Along which dimension of a node's tensor the samples lie; None: none, or no tensor."""
        one, two = self.single.get(node), self.double.get(node)
        if not isinstance(one, Tensor) or not isinstance(two, Tensor) or one.dim() != two.dim():
            return None
        differ = [d for d in range(one.dim()) if one.shape[d] != two.shape[d]]
        return differ[0] if len(differ) == 1 and (one.shape[differ[0]], two.shape[differ[0]]) == (1, 2) else None

    def _is_needed(self, node: fx.Node) -> bool:
        return node.op in ("placeholder", "output") or self._changes_its_input(node)

    def _changes_its_input(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.module_of(node), "inplace", False))
        by_name = node.op == "call_method" and str(node.target).endswith("_")
        return by_name or bool(node.kwargs.get("inplace")) or node.target in _IN_PLACE

    def _is_alone(self, node: fx.Node) -> bool:
        """Whether nothing but the node reads what it changes: its input, and what that shares its memory with."""
        source = node.args[0] if node.args else None
        while isinstance(source, fx.Node) and source.op != "placeholder":
            if len(source.users) > 1:
                return False
            below = source.args[0] if source.args else None
            if not isinstance(below, fx.Node) or not self._share_memory(source, below):
                return True
            source = below
        return not isinstance(source, fx.Node)

    def _share_memory(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether a node may be a view of another; what holds no tensor may be anything."""
        values = self.values[node], self.values[other]
        if not all(isinstance(value, Tensor) for value in values):
            return node.op != "call_module"
        first, second = (value.untyped_storage().data_ptr() for value in values)
        return bool(first == second)

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a node depends on the model's parameters and buffers alone."""
        if node.op == "get_attr":
            return True
        inputs = node.all_input_nodes
        return node.op in ("call_function", "call_method") and bool(inputs) and all(map(self.is_constant, inputs))

    def module_of(self, node: fx.Node) -> Any:
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None


_OF_GRAPHS: dict[type, type] = {
    fx.immutable_collections.immutable_list: list,
    fx.immutable_collections.immutable_dict: dict,
}


def _is_alike(ours: Any, output: Any) -> bool:
    """Whether two outputs are containers of the same kinds, with tensors in the same places."""
    if isinstance(output, Tensor) or not isinstance(output, tuple | list | dict):
        return isinstance(ours, Tensor) == isinstance(output, Tensor)
    kind = _OF_GRAPHS.get(type(ours), type(ours))
    if kind is not type(output) or len(ours) != len(output):
        return False
    pairs = [(ours[key], output[key]) for key in output] if isinstance(output, dict) else zip(ours, output, strict=True)
    return all(_is_alike(a, b) for a, b in pairs)


_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem, torch.relu_)


def _values(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*inputs)
    return dict(interpreter.env)
