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

    `values` are those of its nodes for the example, `single` those for its first sample, `double` for this one and
    another one behind it: samples lie along the dimension in which these differ, unless the model mixes them. `dense`:
    of layers by name torch's dense ones that are faster.

    Raises:
        NotTraceable: the model's graph is not known, or it does what a graph would not: it returns a container of its
            own kind, or keeps what it computes in an attribute.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        if len(inputs) not in _CALLS:
            raise NotTraceable(f"takes {len(inputs)} tensors")
        self.root = _CALLS[len(inputs)](with_layered_attention(model))
        self.root.training = model.training
        self.dense: dict[str, nn.Module] = {}
        try:
            with _Attributes(self.root):
                graph = _Tracer(param_shapes_constant=True).trace(self.root)
            self.module = fx.GraphModule(self.root, graph)
            self.graph = self.module.graph
            self.values = _values(self.module, inputs)
            first = [x[:1] for x in inputs]
            self.single = _values(self.module, first)
            self.double = self._of_two(first)
            with torch.no_grad():
                kept = _is_alike(self.values[next(reversed(self.graph.nodes))], model(*inputs))
        except Exception as error:  # whatever the model's own code does with what stands for its inputs
            raise NotTraceable(one_line(error)) from error
        if not kept:
            raise NotTraceable("it returns a container of its own kind")
        for node in self.graph.nodes:
            if self._changes_its_input(node) and not _is_alone(node):
                raise NotTraceable(f"{node.name} changes a tensor in place that others read")

    def batch_dim(self, node: fx.Node) -> int | None:
        """Along which dimension of a node's tensor the samples lie; None: none, they are mixed, or it is no tensor."""
        one, two = self.single.get(node), self.double.get(node)
        if not isinstance(one, Tensor) or not isinstance(two, Tensor) or one.dim() != two.dim():
            return None
        differ = [d for d in range(one.dim()) if one.shape[d] != two.shape[d]]
        if len(differ) != 1 or (one.shape[differ[0]], two.shape[differ[0]]) != (1, 2):
            return None
        return differ[0] if _is_same(two.narrow(differ[0], 0, 1), one) else None

    def _of_two(self, first: Sequence[Tensor]) -> dict[fx.Node, Any]:
        """The values for two samples: the second has the first one's numbers in reverse, if the model takes that."""
        try:
            return _values(self.module, [torch.cat([x, x.flatten().flip(0).view(x.shape)]) for x in first])
        except Exception:  # whatever the model's own code says of them
            return _values(self.module, [torch.cat([x, x]) for x in first])

    def _changes_its_input(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.module_of(node), "inplace", False))
        by_name = node.op == "call_method" and str(node.target).endswith("_")
        return by_name or bool(node.kwargs.get("inplace")) or node.target in _IN_PLACE

    def module_of(self, node: fx.Node) -> Any:
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_same(x: Tensor, y: Tensor) -> bool:
    """Up to the order of sums; of what is not a floating-point number only the size is known."""
    if not y.is_floating_point() or not y.numel():
        return x.shape == y.shape
    x, y = x.double(), y.double()
    size = y[y.isfinite()].abs().amax() if bool(y.isfinite().any()) else torch.ones(())
    return torch.allclose(x, y, rtol=0.0, atol=1e-3 * float(size) + 1e-30, equal_nan=True)


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


class _Attributes:
    """A `with` block in which modules must not change what they hold: that is undone, and refused."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [(module, dict(vars(module)), _lengths(module)) for module in model.modules()]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        changed = None
        for module, before, lengths in self.modules:
            now = vars(module)
            if now.keys() != before.keys() or any(now[key] is not before[key] for key in before):
                names = [key for key in now if key not in before or now[key] is not before[key]]
                changed = names[0] if names else next(iter(before.keys() - now.keys()))
                now.clear()
                now.update(before)
            for key, length in lengths.items():
                held = before[key]
                if len(held) > length:
                    changed = key
                    del held[length:]
        if changed is not None and kind is None:
            raise NotTraceable(f"it keeps what it computes as {changed!r}")


def _lengths(module: nn.Module) -> dict[str, int]:
    return {key: len(value) for key, value in vars(module).items() if isinstance(value, list)}


_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem, torch.relu_)


def _is_alone(node: fx.Node) -> bool:
    """Whether nothing but the node reads what it changes: its input, and what that may be a view of."""
    source = node.args[0] if node.args else None
    while isinstance(source, fx.Node) and source.op != "placeholder":
        if len(source.users) > 1:
            return False
        if source.op == "call_module" or not source.args:
            return True
        source = source.args[0]
    return not isinstance(source, fx.Node)


def _values(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*inputs)
    return dict(interpreter.env)
