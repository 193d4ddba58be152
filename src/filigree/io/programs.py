"""Programs of `torch.export` as modules with layers, which can be changed."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn

_CONVOLUTIONS: dict[Any, Any] = {
    torch.ops.aten.conv1d.default: nn.Conv1d,
    torch.ops.aten.conv2d.default: nn.Conv2d,
    torch.ops.aten.conv3d.default: nn.Conv3d,
    torch.ops.aten.conv1d.padding: nn.Conv1d,
    torch.ops.aten.conv2d.padding: nn.Conv2d,
    torch.ops.aten.conv3d.padding: nn.Conv3d,
}
_NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_FUNCTIONS: dict[Any, Any] = {  # the same arguments, by the names that people write
    torch.ops.aten.relu.default: torch.relu,
    torch.ops.aten.relu_.default: torch.relu,
    torch.ops.aten.sigmoid.default: torch.sigmoid,
    torch.ops.aten.tanh.default: torch.tanh,
    torch.ops.aten.softmax.int: torch.softmax,
    torch.ops.aten.max_pool2d.default: nn.functional.max_pool2d,
    torch.ops.aten.flatten.using_ints: torch.flatten,
    torch.ops.aten.reshape.default: torch.reshape,
    torch.ops.aten.view.default: torch.reshape,
    torch.ops.aten.permute.default: torch.permute,
    torch.ops.aten.add.Tensor: operator.add,
    torch.ops.aten.mul.Tensor: operator.mul,
    torch.ops.aten.cat.default: torch.cat,
}


class _Layer(NamedTuple):
    """The layer that a call stands for, and what else it is one with: calls of one `key` are of one layer."""

    module: nn.Module
    weight: str
    key: tuple[Any, ...]


def module_of(program: torch.export.ExportedProgram) -> nn.Module:
    """The module that a program was exported from, as a graph: linear layers, convolutions and batch norms are layers
    again, with their names and the program's weights; all else are functions. In evaluation mode.

    The batch size varies as far as the program's does: export with `dynamic_shapes`.
    """
    unlifted: Any = program.module(check_guards=False)
    root, graph = nn.Module(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    keys: dict[str, tuple[Any, ...]] = {}  # of the layers, by their names
    for node in unlifted.graph.nodes:
        if node.op == "call_module":  # what checks the inputs' shapes
            continue
        layer = _layer_of(node, unlifted)
        if layer is not None:
            name = _name_of(layer, keys, unlifted)
            _put(root, name, layer.module)
            copies[node] = graph.call_module(name, (copies[node.args[0]],))
            continue
        copies[node] = graph.node_copy(node, lambda old: copies[old])
        if node.op == "call_function" and node.target in _FUNCTIONS and _is_plain(node):
            copies[node].target = _FUNCTIONS[node.target]
        if node.op == "output":
            copies[node].meta.clear()
    for node in reversed(graph.nodes):  # weights that layers hold now
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    for node in graph.nodes:
        if node.op == "get_attr":
            _put(root, str(node.target), _attribute(unlifted, str(node.target)))
    graph.set_codegen(unlifted.graph._codegen)
    return fx.GraphModule(root, graph, "Program").eval()


def _is_plain(node: fx.Node) -> bool:
    """Whether a function of `_FUNCTIONS` says the same: `a + b` scales nothing, `torch.relu` writes into no view."""
    source = node.args[0]
    if node.target is torch.ops.aten.relu_.default and isinstance(source, fx.Node) and source.op == "call_function":
        returns = source.target._schema.returns if isinstance(source.target, torch._ops.OpOverload) else ()
        return all(part.alias_info is None or part.alias_info.is_write for part in returns)
    return node.target is not torch.ops.aten.add.Tensor or not node.kwargs


def _layer_of(node: fx.Node, holder: Any) -> _Layer | None:
    """The layer that a call stands for; None where it stands for none."""
    if node.op != "call_function":
        return None
    if node.target is torch.ops.aten.linear.default:
        return _with_weights(
            node, holder, lambda weight: nn.Linear(weight.shape[1], weight.shape[0]), ("weight", "bias"), ()
        )
    if node.target in _CONVOLUTIONS:
        values = dict(zip(("stride", "padding", "dilation", "groups"), node.args[3:], strict=False)) | {
            key: value for key, value in node.kwargs.items() if key not in ("weight", "bias")
        }
        groups: Any = values.get("groups", 1)
        kind = _CONVOLUTIONS[node.target]
        settings = {key: tuple(v) if isinstance(v, list | tuple) else v for key, v in values.items()}

        def convolution(weight: Any) -> nn.Module:
            return kind(weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), **settings)

        return _with_weights(node, holder, convolution, ("weight", "bias"), tuple(settings.items()))
    if node.target is torch.ops.aten.batch_norm.default and not node.args[5]:
        kind = _NORMS[node.meta["val"].dim()]
        eps: Any = node.args[7]
        names = ("weight", "bias", "running_mean", "running_var")
        return _with_weights(node, holder, lambda weight: kind(len(weight), eps), names, (eps,))
    return None


def _with_weights(
    node: fx.Node, holder: Any, make: Callable[[Any], Any], names: tuple[str, ...], settings: tuple[Any, ...]
) -> _Layer | None:
    """The module that `make` makes for the weight, with the tensors that a call reads; None where it computes them."""
    given = [*node.args[1 : 1 + len(names)], *[node.kwargs.get(name) for name in names[len(node.args) - 1 :]]]
    if not all(value is None or (isinstance(value, fx.Node) and value.op == "get_attr") for value in given):
        return None
    if not isinstance(given[0], fx.Node):
        return None
    path = str(given[0].target)
    module = make(_attribute(holder, path))
    for name, value in zip(names, given, strict=False):
        tensor = _attribute(holder, str(value.target)) if isinstance(value, fx.Node) else None
        if isinstance(tensor, nn.Parameter) or (tensor is None and name in module._parameters):
            module._parameters[name] = tensor
        elif name in module._parameters and tensor is not None:
            module._parameters[name] = nn.Parameter(tensor, tensor.requires_grad)
        else:
            module._buffers[name] = tensor
    tensors = tuple(str(value.target) if isinstance(value, fx.Node) else None for value in given)
    return _Layer(module, path, (type(module), tensors, *settings))


def _name_of(layer: _Layer, keys: dict[str, tuple[Any, ...]], holder: Any) -> str:
    """That of the module that holds the weight, or a new one where that is another layer's or the whole program's."""
    home = layer.weight.rpartition(".")[0]
    stem = home or "layer"
    names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    free = (name for name in names if name == home or not _has(holder, name))
    return next(name for name in free if keys.setdefault(name, layer.key) == layer.key)


def _has(holder: Any, path: str) -> bool:
    try:
        _attribute(holder, path)
    except AttributeError:
        return False
    return True


def _attribute(holder: Any, path: str) -> Any:
    for part in path.split("."):
        holder = getattr(holder, part)
    return holder


def _put(root: nn.Module, path: str, value: Any) -> None:
    """Put a module, a parameter or a tensor where a path says, into modules that are made on the way."""
    *parents, name = path.split(".")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    if isinstance(value, nn.Module) and name in root._modules:  # what stands in it already stays there
        value._modules.update(root.get_submodule(name)._modules)
    if isinstance(value, nn.Module | nn.Parameter):
        setattr(root, name, value)
    else:
        root.register_buffer(name, value)
