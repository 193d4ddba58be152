"""The activations that kernels compute: their names, in the order of the kernels' numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CURVES = ("", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "hard_sigmoid", "hard_swish", "relu6")

SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
"""Those whose gradients kernels compute too, between the layers of a chain, in torch's words."""

CURVE_OF: dict[type[nn.Module], str] = {
    nn.SiLU: "silu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hard_sigmoid",
    nn.Hardswish: "hard_swish", nn.ReLU6: "relu6",
}  # fmt: skip

GELU_OF = {"none": "gelu", "tanh": "gelu_tanh"}
"""The curves of `nn.GELU`, by what it is approximated with."""


def smooth_curve(module: nn.Module) -> str:
    """The smooth curve that a module is, else nothing."""
    kind = type(module)
    curve = GELU_OF.get(str(module.approximate), "") if kind is nn.GELU else CURVE_OF.get(kind, "")
    return curve if curve in SMOOTH else ""
