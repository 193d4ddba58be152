"""How much a layer's outputs change when its inputs and weights are rounded to bytes, measured on its own inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from filigree.ops.int8 import int8_inputs
from filigree.ops.panel_weights import GROUP, MOST_INPUTS
from filigree.optimize.tracing import Traced
from filigree.optimize.weights import LayerWeight

_MOST_VECTORS = 2048  # of inputs that are looked at


class Int8Errors:
    """The errors of the layers of a graph, `|y_int8 - y| / |y|` with y before the bias, computed when first asked for.

    Args:
        most: the error from which on a layer is not to be rounded; 0: none is.
        is_float: whether a layer, or a part of one, of this name is not to be rounded whatever its error.
        name: of the traced module in the model.
    """

    def __init__(
        self, traced: Traced, most: float, is_float: Callable[[str], bool] = lambda name: False, name: str = ""
    ) -> None:
        self.traced, self.most, self.is_float, self.name = traced, most, is_float, name
        self._errors: dict[tuple[fx.Node, str], float] = {}

    def allowed(
        self, node: fx.Node, weight: LayerWeight, error: Callable[[Tensor], float], part: str = ""
    ) -> float | None:
        """The error of a node's layer, or of a part of it, which `error` computes from inputs; None: it is not to be
        rounded."""
        is_float = self.is_float(path_of(self.name, node, part))
        if self.most <= 0 or not weight.matrix.numel() or GROUP * weight.matrix.shape[1] > MOST_INPUTS or is_float:
            return None
        key = node, part
        if key not in self._errors:
            self._errors[key] = error(self.traced.values[node.all_input_nodes[0]])
        return self._errors[key] if self._errors[key] <= self.most else None


def path_of(name: str, node: fx.Node, part: str) -> str:
    """The name in the model of a node's layer, or of a part of it; `name` is that of the module that was traced."""
    path = str(node.meta.get("path", node.target))
    return ".".join(filter(None, [name, path.removeprefix("model").lstrip("."), part]))


@torch.no_grad()
def int8_error(dense: Any, weight: LayerWeight, x: Tensor) -> float:
    """The error of one layer for inputs `x`; infinite where an output is not finite."""
    integers, scale = weight.in_int8()
    rounded = (integers * scale[:, None]).view(dense.weight.shape)
    if isinstance(dense, nn.Linear):
        x = x.reshape(-1, x.shape[-1])[:_MOST_VECTORS]
        x8 = int8_inputs(x).dequantised()
        exact, ours = F.linear(x, dense.weight), F.linear(x8, rounded)
    else:
        x = x[: max(1, _MOST_VECTORS * 64 // max(1, x[0].numel()))]
        x8, zero = int8_inputs(x).dequantised(), torch.zeros(len(rounded))
        exact, ours = (
            torch.func.functional_call(dense, {"weight": w, "bias": zero}, given)
            for w, given in ((dense.weight, x), (rounded, x8))
        )
    size = float(exact.norm())
    error = float((ours - exact).norm()) / size if size else 0.0
    return error if error == error else float("inf")
