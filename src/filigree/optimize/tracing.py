"""The graph of what a model computes, with the values that its nodes have for an example and for other batches."""

from __future__ import annotations

import collections
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from filigree.config import one_line
from filigree.optimize.arguments import NOTHING, Fixed
from filigree.optimize.encoders import with_layered_attention
from filigree.optimize.functional_layers import functional_layer
from filigree.optimize.tracer import Tracer, computed
from filigree.optimize.written_attention import WrittenAttention
from filigree.preserved import has_hooks
from filigree.rollback import AllOrNothing
from filigree.rounding import relative_difference


class NotTraceable(Exception):
    """Why a model's graph is not known, in a line."""


class _One(nn.Module):
    """It calls a model with one tensor and what is fixed, all other arguments at their defaults."""

    def __init__(self, model: nn.Module, fixed: Fixed) -> None:
        super().__init__()
        self.model, self.fixed = model, fixed

    def forward(self, x: Any) -> Any:
        return self.model(x, *self.fixed.args, **self.fixed.named)


class _Two(_One):
    def forward(self, x: Any, y: Any) -> Any:  # type: ignore[override]
        return self.model(x, y, *self.fixed.args, **self.fixed.named)


class _Three(_One):
    def forward(self, x: Any, y: Any, z: Any) -> Any:  # type: ignore[override]
        return self.model(x, y, z, *self.fixed.args, **self.fixed.named)


_CALLS = {1: _One, 2: _Two, 3: _Three}


class Traced:
    """A model's graph.

    `values` are those of its nodes for the example, `single` and `double` those for its first sample, once and twice:
    what differs between these two depends on the batch. `dense`: of layers by name torch's dense ones that are faster.

    Raises:
        NotTraceable: the model's graph is not known, or it does what a graph would not: it returns a container of a
            class of its own, or keeps what it computes.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor], fixed: Fixed = NOTHING) -> None:
        if len(inputs) not in _CALLS:
            raise NotTraceable(f"takes {len(inputs)} tensors")
        self.root = _CALLS[len(inputs)](with_layered_attention(model), fixed)
        self.root.training = model.training
        self.dense: dict[str, nn.Module] = {}
        self._functional: dict[fx.Node, nn.Module] = {}
        first = [x[:1] for x in inputs]
        examples = [[x.clone() for x in first], [torch.cat([x, x]) for x in first]]
        hooked = any(map(has_hooks, model.modules()))  # hooks do not run while a model is traced
        try:
            with torch.no_grad():
                for example in [] if hooked else examples:  # what layers keep from their first call on is there then
                    self.root(*(x.clone() for x in example))
            with AllOrNothing(self.root.model, values=False) as before, torch.no_grad():
                graph = Tracer([] if hooked else examples).trace(self.root)
                if before.has_changed():
                    raise NotTraceable("it keeps what it computes")
                self.module = fx.GraphModule(self.root, graph)
                self.graph = self.module.graph
                self.changed: dict[fx.Node, list[fx.Node]] = {}  # the inputs that a node writes into
                self.values = self._run(inputs)
                self.single = self._run(first)
                self.double = self._run([torch.cat([x, x]) for x in first])
                if before.has_drawn():
                    raise NotTraceable("it draws random numbers")
            with torch.no_grad():
                alike = _is_alike(
                    self.values[next(reversed(self.graph.nodes))], model(*inputs, *fixed.args, **fixed.named)
                )
        except Exception as error:  # whatever the model's own code does with what stands for its inputs
            raise NotTraceable(one_line(error)) from error
        if not alike:
            raise NotTraceable("it returns a container of its own kind")
        for node, sources in self.changed.items():
            if not all(map(self._is_alone, sources)):
                raise NotTraceable(f"{node.name} changes a tensor in place that others read")
        called = collections.Counter(node.target for node in self.graph.nodes if node.op == "call_module")
        if max(called.values(), default=0) > _MOST_CALLS:
            raise NotTraceable(f"it calls a layer more than {_MOST_CALLS} times")
        try:
            self._prepare()
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            raise NotTraceable(one_line(error)) from error

    def _prepare(self) -> None:
        """Say what does not depend on the inputs, and write what has several forms in one."""
        self.constants, self.sizes = self._constants(), self._sizes()
        self._repeated = self._same_for_all()
        self.graph.eliminate_dead_code(self.acts)  # what asks for a shape to assert something reads no numbers
        self._put_constants_last()
        self._put_attention_as_calls()
        layers = {node: functional_layer(node, self.constant) for node in self.graph.nodes}
        self._functional |= {node: layer for node, layer in layers.items() if layer is not None}
        self.graph.eliminate_dead_code(self.acts)

    def samples(self, node: fx.Node) -> tuple[int, int] | None:
        """Along which dimension of a node's tensor the samples lie, and how many rows each has; None: none, or no
        tensor."""
        one, two = self.single.get(node), self.double.get(node)
        if not isinstance(one, Tensor) or not isinstance(two, Tensor) or one.dim() != two.dim():
            return None
        differ = [d for d in range(one.dim()) if one.shape[d] != two.shape[d]]
        if len(differ) != 1 or two.shape[differ[0]] != 2 * one.shape[differ[0]]:
            return None
        return differ[0], one.shape[differ[0]]

    def _run(self, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
        interpreter = _Interpreter(self.module)
        with torch.no_grad():
            interpreter.run(*inputs)
        self.changed |= interpreter.changed
        return dict(interpreter.env)

    def acts(self, node: fx.Node) -> bool:
        """Whether a node does something though nothing reads it: its hooks do, or it asserts something of numbers."""
        is_assert = node.target in (torch._assert, torch._assert_async) and not self._asks_for_sizes(node)
        hooked = node.op == "call_module" and has_hooks(self.module_of(node))
        return node.op in ("placeholder", "output") or node in self.changed or hooked or is_assert

    def _asks_for_sizes(self, node: fx.Node) -> bool:
        return all(source in self.sizes or source in self.constants for source in node.all_input_nodes)

    def _is_alone(self, source: fx.Node) -> bool:
        """Whether nothing but the node that changes it reads a tensor, and what that shares its memory with."""
        if source.op in ("placeholder", "get_attr") or len(source.users) > 1:
            return False
        return all(self._is_alone(below) for below in source.all_input_nodes if self._share_memory(source, below))

    def _share_memory(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether a node may hold a view of another; of several tensors, any may be one."""
        values = self.values[node], self.values[other]
        if all(isinstance(value, Tensor) for value in values):
            first, second = (value.untyped_storage().data_ptr() for value in values)
            return bool(first == second)
        holds = [isinstance(v, Tensor | tuple | list | dict) and not isinstance(v, torch.Size) for v in values]
        return node.op != "call_module" and all(holds)

    def _constants(self) -> set[fx.Node]:
        """The nodes that depend on parameters, buffers and tensors that the model made of no input alone."""
        named = {name for name, _ in (*self.root.named_parameters(), *self.root.named_buffers())}
        named |= {name for name, value in vars(self.root).items() if isinstance(value, Tensor)}
        nodes: set[fx.Node] = set()
        for node in self.graph.nodes:
            inputs = node.all_input_nodes
            derived = node.op in ("call_function", "call_method") and bool(inputs) and nodes.issuperset(inputs)
            if (node.op == "get_attr" and str(node.target) in named) or derived:
                nodes.add(node)
        return nodes

    def _sizes(self) -> dict[fx.Node, bool]:
        """The nodes that depend on the sizes of tensors alone, and whether on that of the batch."""
        nodes: dict[fx.Node, bool] = {}
        for node in self.graph.nodes:
            by_attribute = node.target is getattr and node.args[1] in _SIZES
            asks = by_attribute or (node.op == "call_method" and node.target in _SIZES)
            inputs = node.all_input_nodes
            derived = node.op in ("call_function", "call_method") and bool(inputs) and nodes.keys() >= set(inputs)
            if asks or derived:
                differs = not isinstance(self.single[node], torch.Size) and _differ(
                    self.single[node], self.double[node]
                )
                nodes[node] = differs or (derived and not asks and any(nodes[each] for each in inputs))
        return nodes

    def held(self) -> list[Tensor]:
        """Tensors that the model reads and that are no parameters, buffers or attributes of its modules."""
        return [value for value in vars(self.root).values() if isinstance(value, Tensor)]

    def constant(self, value: Any) -> Any:
        """What a constant is, given as its node or itself; None: it is a node that depends on the inputs."""
        if not isinstance(value, fx.Node):
            return value
        return self.single[value] if value in self.constants else None

    def _same_for_all(self) -> set[fx.Node]:
        """The nodes that depend on constants and the size of the batch alone, and hold the same for each sample."""
        written = {source for sources in self.changed.values() for source in sources}
        nodes: set[fx.Node] = set()
        for node in self.graph.nodes:
            inputs = node.all_input_nodes
            known = all(each in self.constants or each in self.sizes or each in nodes for each in inputs)
            samples = self.samples(node)
            if not inputs or not known or node in self.changed or node in written or not samples or samples[0]:
                continue
            if torch.equal(self.double[node], torch.cat([self.single[node]] * 2)):
                nodes.add(node)
        return nodes

    def same_for_all(self, node: Any) -> Tensor | None:
        """What a tensor holds for each sample, `(1, ...)` or `(1, rows, ...)`, if that is the same; None: it depends on
        the inputs."""
        if not isinstance(node, fx.Node) or node not in self._repeated:
            return None
        value, samples = self.single[node], self.samples(node)
        return value if samples == (0, 1) else value[None]

    def is_zero(self, value: Any) -> bool:
        """Whether a value is of zeros alone whatever the inputs are: None, a tensor, or a tuple of such."""
        if value is None or isinstance(value, tuple | list):
            return all(map(self.is_zero, value or ()))
        known = isinstance(value, fx.Node) and (value in self.sizes or value in self.constants)
        return known and not any(bool(each[value].any()) for each in (self.single, self.double))

    def _is_fixed(self, value: Any) -> bool:
        """Whether it does not depend on the inputs, but for how many samples there are."""
        return isinstance(self.constant(value), Tensor | float | int) or self.same_for_all(value) is not None

    def _put_constants_last(self) -> None:
        """`2 + x` and `scale * x` become `x + 2` and `x * scale`."""
        for node in self.graph.nodes:
            if node.target not in _COMMUTATIVE or node in self.changed or node.kwargs or len(node.args) != 2:
                continue
            first, second = node.args
            if self._is_fixed(first) and not self._is_fixed(second):
                node.args, node.target = (second, first), _COMMUTATIVE[node.target]

    def _put_attention_as_calls(self) -> None:
        """What is written out of attention becomes `F.scaled_dot_product_attention`."""

        def keep(tensor: Tensor) -> str:
            name = f"_mask{len(self.root._buffers)}"
            for holder in (self.root, self.module):
                holder.register_buffer(name, tensor)
            return name

        with torch.no_grad():
            written = WrittenAttention(self.single.get, self.constant, self.module_of, self.samples, keep)
            replaced = set(written.replace(self.graph, self._computes))
        if replaced:
            self.changed = {node: sources for node, sources in self.changed.items() if node not in replaced}
            self.constants, self.sizes = self._constants(), self._sizes()
            self._repeated = self._same_for_all()

    def _computes(self, new: list[fx.Node], replaced: fx.Node) -> bool:
        """Keep the values of new nodes; whether those of the last one are those of another node."""
        for values in (self.values, self.single, self.double):
            for node in new:
                values[node] = computed(self.root, node, values.__getitem__)
            if not relative_difference([values[new[-1]]], [values[replaced]]) <= _ROUNDING:
                return False
        return True

    def module_of(self, node: fx.Node) -> Any:
        """The module that a node calls, of a layer that is called by function one that equals it."""
        if node in self._functional:
            return self._functional[node]
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None


_ROUNDING = 1e-3  # of the largest number: what attention may differ by that sums in another order
_MOST_CALLS = 64  # of one module: a loop over time that is unrolled

_COMMUTATIVE: dict[Any, Any] = {
    operator.add: operator.add, operator.iadd: operator.add, torch.add: torch.add,
    operator.mul: operator.mul, operator.imul: operator.mul, torch.mul: torch.mul,
}  # fmt: skip

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


def _differ(one: Any, other: Any) -> bool:
    """Whether two values differ; of what cannot be compared it is said."""
    if isinstance(one, Tensor):
        return not isinstance(other, Tensor) or one.shape != other.shape or not torch.equal(one, other)
    plain = one is None or isinstance(one, int | float | str | slice | torch.Size | torch.dtype | torch.device)
    return not plain or bool(one != other)


_SIZES = ("size", "shape", "dim", "ndim", "numel", "nelement")


class _Interpreter(fx.Interpreter):
    """Keeps the values of all nodes, and notes which nodes write into what they read."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.changed: dict[fx.Node, list[fx.Node]] = {}

    def run_node(self, n: fx.Node) -> Any:
        read = [(node, self.env[node]) for node in n.all_input_nodes if isinstance(self.env.get(node), Tensor)]
        versions = [None if tensor.is_inference() else tensor._version for _, tensor in read]
        result = super().run_node(n)
        written = [
            node
            for (node, tensor), version in zip(read, versions, strict=True)
            if version is not None and tensor._version != version
        ]
        if written:
            self.changed[n] = written
        return result


def is_indexed(node: fx.Node, depth: int) -> bool:
    """Whether all that read a tuple take one of its parts, and of those that are tuples again likewise."""
    for user in node.users:
        if user.op != "call_function" or user.target is not operator.getitem or not isinstance(user.args[1], int):
            return False
        is_tensor = depth == 1 or (user.args[1] == 0 and node.op == "call_module")
        if not is_tensor and not is_indexed(user, depth - 1):
            return False
    return True
