"""A tracer that runs a model on examples as it goes, so that sizes are numbers, but for those of the batch."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from filigree.optimize.encoders import plain_call
from filigree.preserved import has_hooks
from filigree.summary import says

_PLAIN = (int, float, str, torch.Size, torch.dtype, torch.device)
_ASKED = ("shape", "dtype", "device", "ndim")
_EINOPS = ("rearrange", "repeat", "reduce", "einsum")  # functions of einops, which refuse what is no tensor
_CREATED = ("zeros", "ones", "full", "empty", "arange")  # functions of torch that are given sizes
_BY_NUMBERS = {
    "nonzero", "unique", "unique_consecutive", "masked_select", "argwhere", "item", "tolist", "bincount",
    "repeat_interleave", "one_hot",
}  # fmt: skip
_NEW = ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
_CALLED = {"size": "shape", "dim": "ndim", "ndimension": "ndim"}


class Tracer(fx.Tracer):
    """Layers of torch and filigree, and modules with hooks, are nodes; all else is looked into, also encoders.

    Each node is computed for `examples`, the inputs as one sample and as two. What code asks of a tensor's shape, type
    and device is then a plain number where both agree, so that it may decide by it and make tensors of such sizes:
    these are constants of the graph. `values`: of each node, for each of the examples.
    """

    def __init__(self, examples: Sequence[Sequence[Tensor]]) -> None:
        einops = sys.modules.get("einops")  # a model that calls its functions has loaded it
        functions = tuple(getattr(einops, name) for name in _EINOPS) if einops else ()
        super().__init__(param_shapes_constant=True, autowrap_functions=functions)
        self.examples, self.values = examples, dict[fx.Node, list[Any]]()
        self.by_numbers: set[fx.Node] = set()  # whose sizes depend on numbers of the inputs
        self._computes = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        torch.overrides.is_tensor_method_or_property(torch.add)  # it keeps a list of functions from its first call on
        functions = {name: getattr(torch, name) for name in _CREATED}
        originals = {name: getattr(each, "_original", each) for name, each in functions.items()}  # of another trace
        try:
            for name, original in originals.items():
                setattr(torch, name, self._creating(original))
            return super().trace(root, concrete_args)
        finally:
            for name, original in originals.items():
                setattr(torch, name, original)

    def _creating(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as a node where a size depends on the batch."""

        def create(*args: Any, **named: Any) -> Any:
            plain = not _proxies((args, named))
            return original(*args, **named) if plain else self.create_proxy("call_function", original, args, named)

        create._original = original  # type: ignore[attr-defined]
        return create

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._computes:
            return forward(*args, **kwargs)
        plain = plain_call(m, args, kwargs)
        return super().call_module(m, forward, args, kwargs) if plain is None else plain()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if has_hooks(m):
            return True
        if says(m):
            return not getattr(m, "calls_layers_only", False)
        is_known = m.__module__.startswith(("torch.nn", "einops.layers"))
        return is_known and not isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return attr_val if self._computes else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, kind: str, target: Any, *rest: Any, **named: Any) -> fx.Node:
        node = super().create_node(kind, target, *rest, **named)
        if not self.by_numbers.isdisjoint(node.all_input_nodes) or self._asks_for_numbers(node):
            self.by_numbers.add(node)
        if kind != "output":
            number = sum(other.op == "placeholder" for other in self.values) if kind == "placeholder" else 0
            self._computes = True
            try:
                self.values[node] = [self._value(node, which, number) for which in range(len(self.examples))]
            finally:
                self._computes = False
        return node

    def _asks_for_numbers(self, node: fx.Node) -> bool:
        """Whether the size of what a node holds, or a number that it is, depends on more than sizes."""
        if getattr(node.target, "__name__", node.target) in _BY_NUMBERS:
            return True
        index = node.args[1:] if node.target is operator.getitem else ()
        read: list[fx.Node] = []
        fx.node.map_arg(index, read.append)
        return any(isinstance(value, Tensor) for each in read for value in self.values.get(each, ()))

    def _value(self, node: fx.Node, which: int, number: int) -> Any:
        if node.op == "placeholder":
            return self.examples[which][number]
        return computed(self.root, node, lambda each: self.values[each][which])

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """What stands for a value while a model is traced: it knows what does not depend on the batch."""

    def __getattr__(self, name: str) -> Any:
        values = self._values
        if values and self._has_plain_sizes and all(isinstance(value, Tensor) for value in values):
            if name in _CALLED:
                return lambda *args, **named: self._called(name, *args, **named)
            if name in _NEW:
                return lambda *args, **named: self._new(name, *args, **named)
            if name in _ASKED:
                known = self._known([getattr(value, name) for value in values])
                if known is not None:
                    return known
                if name == "shape" and len({value.dim() for value in values}) == 1:
                    return _Sizes(self._size(d) for d in range(values[0].dim()))
        return super().__getattr__(name)

    @property
    def _values(self) -> list[Any]:
        return self.tracer.values[self.node]  # type: ignore[attr-defined]

    @property
    def _has_plain_sizes(self) -> bool:
        return self.node not in self.tracer.by_numbers  # type: ignore[attr-defined]

    @staticmethod
    def _known(values: list[Any]) -> Any:
        """A plain value that is the same for all examples; None: there is none."""
        plain = all(isinstance(value, _PLAIN) and value == values[0] for value in values)
        return values[0] if values and plain else None

    def _new(self, name: str, *args: Any, **named: Any) -> Any:
        """A tensor of this type; a constant if its size does not depend on the batch."""
        target: Any = super().__getattr__(name) if _proxies((args, named)) else getattr(self._values[0], name)
        return target(*args, **named)

    def _called(self, name: str, *args: Any, **named: Any) -> Any:
        shape = getattr(self, _CALLED[name])
        if name != "size" or not (args or named):
            return shape
        d = args[0] if args else named["dim"]
        return shape if d is None else shape[d]

    def _size(self, d: int) -> Any:
        known = self._known([value.shape[d] if d < value.dim() else None for value in self._values])
        shape: Any = super().__getattr__("shape")
        return shape[d] if known is None else known

    def __len__(self) -> int:
        lengths = [len(value) if isinstance(value, Tensor | tuple | list) else None for value in self._values]
        known = self._known(lengths) if self._has_plain_sizes else None
        return int(known) if known is not None else super().__len__()

    def __iter__(self) -> Iterator[Any]:
        try:
            count = len(self)
        except RuntimeError:
            return super().__iter__()
        parts: Any = self
        return iter([parts[i] for i in range(count)])


def _proxies(value: Any) -> list[fx.Proxy]:
    """Those in nested arguments of a call."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [proxy for each in value for proxy in _proxies(each)]
    return [value] if isinstance(value, fx.Proxy) else []


class _Sizes(tuple):
    """A shape of which some sizes depend on the batch."""

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        if not isinstance(index, slice):
            return part
        return torch.Size(part) if all(isinstance(size, int) for size in part) else _Sizes(part)

    def numel(self) -> Any:
        return math.prod(self)


def computed(root: nn.Module, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    """What a node holds that is no input, from what those hold that it reads."""
    if node.op == "get_attr":
        return attribute(root, str(node.target))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of)
    if node.op == "call_module":
        return root.get_submodule(str(node.target))(*args, **kwargs)
    call: Callable[..., Any] = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target  # type: ignore[assignment]
    return call(*(args[1:] if node.op == "call_method" else args), **kwargs)


def attribute(root: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)
