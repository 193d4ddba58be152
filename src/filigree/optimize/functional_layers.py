"""Linear layers and convolutions that are called by function, as the modules that they equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

_LAYERS: dict[Any, type[nn.Module]] = {
    F.linear: nn.Linear, F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d,
}  # fmt: skip
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

FUNCTIONAL_LAYERS = tuple(_LAYERS)


def functional_layer(node: fx.Node, value_of: Callable[[Any], Any]) -> Any:
    """The module that a call of a function equals, with its weight and bias as they are; None: it is no such call.

    Args:
        value_of: what a constant is, None of what is none. The module's path is in `node.meta["path"]`: that of the
            module whose weight it is, or the node's name.
    """
    if node.op != "call_function" or node.target not in _LAYERS or not node.args:
        return None
    given: dict[str, Any] = {**dict(zip(_ARGUMENTS, node.args, strict=False)), **node.kwargs}
    weight, bias = value_of(given["weight"]), value_of(given.get("bias"))
    settings = {name: given[name] for name in _ARGUMENTS[3:] if name in given}
    if (
        not isinstance(weight, Tensor)
        or weight.dim() < 2
        or (given.get("bias") is not None and not isinstance(bias, Tensor))
    ):
        return None
    if any(isinstance(each, fx.Node) for value in settings.values() for each in _each(value)):
        return None
    outputs, inputs, *kernel = weight.shape
    sizes: list[Any] = [inputs * settings.get("groups", 1), outputs, *([tuple(kernel)] if kernel else [])]
    layer: Any = _LAYERS[node.target](*sizes, **settings, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    owner = str(getattr(given["weight"], "target", "")).rpartition(".")[0]
    node.meta["path"] = owner or node.name
    return layer.eval()


def _each(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]
