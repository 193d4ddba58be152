"""See a model as a chain of modules, each of which reads what the one before it wrote; sums read what was kept, too."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from filigree.computed_weights import why_computed
from filigree.config import one_line
from filigree.export.answers import answers
from filigree.export.c.in_place import check_in_place
from filigree.export.c.kept import Add, Keep, Kept, Restore, View
from filigree.export.c.recurrent import LastMoment
from filigree.nn.rnn import LoopedRNN

Link = tuple[str, nn.Module]

# What a forward may call in place of a module; each takes the call's arguments but for the input itself.
_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    torch.relu: nn.ReLU, F.relu: nn.ReLU, "relu": nn.ReLU, torch.relu_: nn.ReLU, "relu_": nn.ReLU,
    torch.tanh: nn.Tanh, F.tanh: nn.Tanh, "tanh": nn.Tanh,
    torch.sigmoid: nn.Sigmoid, F.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid,
    F.leaky_relu: nn.LeakyReLU, F.elu: nn.ELU, F.gelu: nn.GELU, F.silu: nn.SiLU,
    F.hardtanh: nn.Hardtanh, F.hardsigmoid: nn.Hardsigmoid, F.relu6: nn.ReLU6,
    F.hardswish: nn.Hardswish, F.mish: nn.Mish, F.softplus: nn.Softplus, F.softsign: nn.Softsign,
    F.logsigmoid: nn.LogSigmoid, F.selu: nn.SELU, F.celu: nn.CELU,
    torch.softmax: nn.Softmax, F.softmax: nn.Softmax, "softmax": nn.Softmax,
    torch.log_softmax: nn.LogSoftmax, F.log_softmax: nn.LogSoftmax, "log_softmax": nn.LogSoftmax,
    F.max_pool1d: nn.MaxPool1d, F.avg_pool1d: nn.AvgPool1d, F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.max_pool2d: nn.MaxPool2d, F.avg_pool2d: nn.AvgPool2d, F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_max_pool1d: nn.AdaptiveMaxPool1d, F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
    F.dropout: lambda p=0.5, training=True: nn.Dropout(p) if training else nn.Identity(), "contiguous": nn.Identity,
    torch.flatten: lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
    "flatten": lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
}  # fmt: skip
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_", "__add__", "__iadd__")
_IGNORED = ("input", "inplace", "_stacklevel", "dtype")  # named in a call, of no account here


def chain(model: nn.Module, known: Callable[[nn.Module], bool], what: str, *, sums: bool = False) -> list[Link]:
    """List the modules of a model in the order in which they run, with their names.

    Args:
        sums: with residual sums: what is read again later is kept, restored and added, by modules that stand for that.
        known: which modules are links of the chain as they are; others are looked into, by torch.fx.
        what: the end of the error about a module that has nothing to be looked into.

    Raises:
        ValueError: a forward that cannot be traced, or that is no chain: the module is named.
    """
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            why = why_computed(module) or "has forward hooks: remove them"
            raise ValueError(f"export: {name or 'the model'!r} ({type(module).__name__}) {why}. C has no hooks.")
    if known(model):
        return [(type(model).__name__, model)]
    tracer = _Tracer(known)
    if tracer.is_leaf_module(model, ""):
        raise ValueError(f"export: the model is a {type(model).__name__}, {what}.")
    try:
        graph = tracer.trace(model)
    except Exception as error:  # a forward can fail on a tracer in any way
        reason = one_line(error)
        raise ValueError(f"export: the model's forward cannot be traced as a chain of layers: {reason}") from None
    links: list[Link] = []
    kept: dict[fx.Node, Kept] = {}
    modules: dict[fx.Node, nn.Module] = {}
    last: fx.Node | None = None
    for node in list(graph.nodes):  # y, state = lstm(x), where nobody reads the state
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)
    shapes: set[fx.Node] = set()  # of nodes that ask for the batch size only
    for node in graph.nodes:
        shapes |= {node} if _asks_for_size(node, shapes) else set()
    for node in graph.nodes:
        reads = [n for n in node.all_input_nodes if n not in shapes]
        if node.op == "placeholder":
            if last is not None or node.args:
                raise ValueError(f"export: the model must take one input. Its forward also takes {node.target!r}.")
        elif node in shapes:
            continue
        elif sums and node.target in _SUMS and _are_two_tensors(node, reads):
            links += _sum(node, last, kept)
        elif len(reads) != 1 or (reads != [last] and reads[0] not in kept):
            raise ValueError(f"export: the model must be a chain of layers. {_owner(node)} reads {len(reads)} tensors.")
        elif reads != [last] and node.op == "output":
            links.append((node.name, Restore(node.name, kept[reads[0]])))
        elif node.op != "output":
            links += [(node.name, Restore(node.name, kept[reads[0]]))] if reads != [last] else []
            links.append(_link(node, tracer, shapes, what))
            modules[node] = links[-1][1]
        elif not isinstance(node.args[0], fx.Node):
            raise ValueError("export: the model must return one tensor.")
        readers = [user for user in node.users if user not in shapes]
        follower = node.next
        while follower in shapes:
            follower = follower.next
        is_doubled = list(follower.args) == [node, node]
        if sums and readers and (readers != [follower] or is_doubled):
            kept[node] = Kept()
            links.append((node.name, Keep(node.name, kept[node])))
        elif len(readers) > 1:
            by = " and ".join(map(_owner, readers))
            raise ValueError(
                f"export: the model must be a chain of layers. What {_owner(node)} returns is read by {by}."
            )
        last = node
    if kept:
        check_in_place(graph, modules, shapes)
    return links


def _are_two_tensors(node: fx.Node, reads: list[fx.Node]) -> bool:
    """Tell whether a node is the plain sum of two tensors."""
    return list(node.args) in (reads, 2 * reads) and len(node.args) == 2 and not node.kwargs


def _sum(node: fx.Node, last: fx.Node | None, kept: dict[Any, Kept]) -> list[Link]:
    """Add the other tensor to the last one, or both to each other where neither is."""
    first, second = node.args
    if first is not last and second is not last:
        return [(node.name, Restore(node.name, kept[first])), (node.name, Add(node.name, kept[second]))]
    return [(node.name, Add(node.name, kept[first if second is last else second]))]


class _Proxy(fx.Proxy):
    """It records `y += x` as what it is, in place; an `fx.Proxy` would record `y + x`."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __radd__(self, other: Any) -> fx.Proxy:
        """Leave out the 0 that `sum([a, b])` begins with."""
        if isinstance(other, int) and other == 0:
            return self
        return self.tracer.create_proxy("call_function", operator.add, (other, self), {})


class _Tracer(fx.Tracer):
    def __init__(self, known: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.known = known

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("filigree.nn.") or answers(m, "c_form", "dense")
        refused_by_name = (ours and not list(m.children())) or isinstance(m, LoopedRNN)
        return self.known(m) or refused_by_name or super().is_leaf_module(m, module_qualified_name)


def _asks_for_size(node: fx.Node, shapes: set[fx.Node]) -> bool:
    if node.op == "call_method":
        return node.target == "size"
    asks_shape = node.target is getattr and node.args[1:] == ("shape",)
    return asks_shape or (bool(node.all_input_nodes) and shapes.issuperset(node.all_input_nodes))


def _is_batch_size(side: Any) -> bool:
    """Tell whether a number of a graph is `x.size(0)`, `x.shape[0]` or `x.size()[0]`."""
    if not isinstance(side, fx.Node):
        return False
    if side.target == "size":
        return bool([*side.args[1:], *side.kwargs.values()] == [0])
    if side.target is not operator.getitem or side.args[1] != 0 or not isinstance(of := side.args[0], fx.Node):
        return False
    return of.args[1:] == ("shape",) if of.target is getattr else of.target == "size" and len(of.args) == 1


def _link(node: fx.Node, tracer: _Tracer, shapes: set[fx.Node], what: str) -> Link:
    if node.op == "call_module":
        module = tracer.root.get_submodule(str(node.target))
        if not tracer.known(module):
            raise ValueError(f"export: {node.target!r} is a {type(module).__name__}, {what}.")
        return str(node.target), module
    name = f"{_prefix(node)}{node.name}"
    if node.target is operator.getitem:
        if node.args[1] == 0 and _is_recurrent(node.args[0], tracer):  # what is made at each moment; not the state
            return name, nn.Identity()
        if node.args[1] in [(slice(None), -1), (slice(None), -1, slice(None))]:
            return name, LastMoment()
        raise ValueError(f"export: {_owner(node)} cannot be written as C. Of recurrent layers it may be y[:, -1].")
    if node.target in ("view", "reshape", torch.reshape):
        sides = [*node.args[1:], *node.kwargs.values()]  # view(n, -1), view((n, -1)), reshape(shape=(n, -1))
        sides = list(sides[0]) if len(sides) == 1 and isinstance(sides[0], tuple | list) else sides
        if len(sides) == 2 and (sides[0] == -1 or _is_batch_size(sides[0])) and isinstance(sides[1], int):
            return name, nn.Flatten() if sides[1] == -1 else View(sides[1])
        raise ValueError(
            f"export: {_owner(node)} makes another shape than (batch, numbers): it cannot be written as C."
        )
    module_of = _FUNCTIONS.get(node.target)
    if module_of is None:
        raise ValueError(f"export: {_owner(node)} cannot be written as C.")
    try:
        module = module_of(*node.args[1:], **{k: v for k, v in node.kwargs.items() if k not in _IGNORED})
    except TypeError as error:
        raise ValueError(f"export: {_owner(node)} cannot be written as C: {error}.") from None
    if isinstance(module, nn.Dropout) and module.p and not tracer.root.training:
        raise ValueError(f"export: {_owner(node)} drops in eval mode, too. Call it with training=self.training.")
    return name, module


def _is_recurrent(node: Any, tracer: _Tracer) -> bool:
    return node.op == "call_module" and isinstance(tracer.root.get_submodule(str(node.target)), nn.RNNBase | LoopedRNN)


def _prefix(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}))
    return f"{stack[-1]}." if stack and stack[-1] else ""


def _owner(node: fx.Node) -> str:
    """Name a node, and the module whose forward it stands in, for errors."""
    if node.op == "call_module":
        return repr(node.target)
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    inside = _prefix(node).removesuffix(".")
    return f"{what!r} in the forward of {inside!r}" if inside else f"{what!r} in the model's forward"
