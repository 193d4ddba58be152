"""Turn modules into steps of a C program: torch's own by a table; filigree's layers say theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from filigree.export.answers import answers, is_from
from filigree.export.c.kept import Add, Keep, Restore
from filigree.export.c.recurrent import Last, LastMoment, recurrent
from filigree.export.c.rows import in_a_row, row_geometry, row_pool
from filigree.nn.sparse.sparse_conv2d import conv_geometry
from filigree.nn.structured.structured_rnn import StructuredRNN
from filigree.ops.c_steps import (
    Affine,
    Elementwise,
    ParametricReLU,
    Pool,
    Reshape,
    ScaleShift,
    Softmax,
    clamp,
    convolution,
    csr,
    floats,
    linear,
    refuse,
    relu,
)


def is_known(module: nn.Module) -> bool:
    """Tell whether `steps` knows a module; a subclass of your own with its own forward is looked into instead."""
    return _form(module) is not None


def steps(module: nn.Module, name: str) -> list[Any]:
    """Turn a module in eval mode into steps. `ValueError` names one that has no form in C."""
    form = _form(module)
    if form is None:
        raise refuse(name, f"is a {type(module).__name__}, which cannot be written as C")
    parts = [steps(part[1], part[0]) if isinstance(part, tuple) else [part] for part in form(name)]
    return [step for part in parts for step in part]


def _form(module: nn.Module) -> Callable[[str], list[Any]] | None:
    """Return the function that gives the steps of the module for a name; None where there is none."""
    layer: Any = module
    if answers(module, "c_form", "dense"):
        return layer.c_form
    for kind in type(module).__mro__:
        if kind in _TORCH:
            return lambda name: _TORCH[kind](layer, name)
        if "forward" in vars(kind) and not is_from(kind, ("torch", "filigree")):
            break
    return None


def folded(program: Sequence[Any]) -> list[Any]:
    """Put each scale and shift into the weights that it follows directly."""
    result: list[Any] = []
    for step in program:
        before = result[-1] if result else None
        if isinstance(step, ScaleShift) and isinstance(before, Affine) and len(step.scale) == before.matrix.shape[0]:
            result[-1] = before.scaled(step.scale, step.shift)
        else:
            result.append(step)
    return result


# -- torch's own modules ---------------------------------------------------------------------------------------------


def _linear(module: Any, name: str) -> list[Any]:
    return linear(module, name, csr(floats(module.weight)))


def _conv1d(module: Any, name: str) -> list[Any]:
    (step,) = convolution(module, name, csr(floats(module.weight.flatten(1))), row_geometry(module))
    return in_a_row(name, step)


def _conv2d(module: Any, name: str) -> list[Any]:
    return convolution(module, name, csr(floats(module.weight.flatten(1))), conv_geometry(module))


def _batch_norm(module: Any, name: str) -> list[Any]:
    if module.running_mean is None or module.running_var is None:
        raise refuse(name, "has no running statistics, so that its output depends on the batch")
    mean, variance = (t.detach().cpu().double().numpy() for t in (module.running_mean, module.running_var))
    ones = np.ones(len(mean))
    weight, bias = (d if t is None else t.detach().cpu().double().numpy()
                    for t, d in ((module.weight, ones), (module.bias, 0 * ones)))  # fmt: skip
    factor = weight / np.sqrt(variance + module.eps)
    return [ScaleShift(name, factor, bias - mean * factor)]


def _gelu(module: Any, name: str) -> list[Any]:
    if module.approximate == "tanh":
        value = "0.5f * v * (1.0f + tanhf(0.7978845608f * (v + 0.044715f * v * v * v)))"
        return [Elementwise(name, "gelu_by_tanh", value)]
    return [Elementwise(name, "gelu", "0.5f * v * (1.0f + erff(0.7071067812f * v))")]


def _activation(function: str, value: str, **numbers: str) -> Callable[[Any, str], list[Any]]:
    """Write an activation as an expression in C; `numbers` are attributes of the module by their names in it."""
    return lambda module, name: [
        Elementwise(name, function, value, tuple((key, getattr(module, of)) for key, of in numbers.items()))
    ]


def _nothing(module: Any, name: str) -> list[Any]:
    return []


def _itself(module: Any, name: str) -> list[Any]:
    return [module]


def _reshape(module: Any, name: str) -> list[Any]:
    return [Reshape(name, module)]


def _max_pool(module: Any, name: str) -> list[Any]:
    if module.return_indices:
        raise refuse(name, "must return no indices")
    one = isinstance(module, nn.MaxPool1d | nn.AdaptiveMaxPool1d)
    return in_a_row(name, row_pool(module, name, "max")) if one else [Pool(name, module, "max")]


def _average_pool(module: Any, name: str) -> list[Any]:
    if getattr(module, "divisor_override", None) is not None:
        raise refuse(name, "must have no divisor_override")
    padded = getattr(module, "count_include_pad", False)  # adaptive pooling pads nothing
    take = "padded average" if padded else "average"
    one = isinstance(module, nn.AvgPool1d | nn.AdaptiveAvgPool1d)
    return in_a_row(name, row_pool(module, name, take)) if one else [Pool(name, module, take)]


def _softmax(module: Any, name: str) -> list[Any]:
    return [Softmax(name, isinstance(module, nn.LogSoftmax), module.dim)]


_TORCH: dict[type, Callable[[Any, str], list[Any]]] = {
    nn.Linear: _linear, nn.Conv1d: _conv1d, nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm, nn.BatchNorm2d: _batch_norm,
    nn.ReLU: lambda module, name: [relu(name)],
    nn.LeakyReLU: _activation("leaky_relu", "v < 0.0f ? slope * v : v", slope="negative_slope"),
    nn.PReLU: lambda module, name: [ParametricReLU(name, floats(module.weight))],
    nn.Tanh: _activation("hyperbolic_tangent", "tanhf(v)"),
    nn.Sigmoid: _activation("sigmoid", "1.0f / (1.0f + expf(-v))"),
    nn.SiLU: _activation("silu", "v / (1.0f + expf(-v))"),
    nn.Mish: _activation("mish", "v * tanhf(v > 20.0f ? v : log1pf(expf(v)))"),
    nn.Softplus: _activation("softplus", "beta * v > threshold ? v : log1pf(expf(beta * v)) / beta",
                             beta="beta", threshold="threshold"),
    nn.Softsign: _activation("softsign", "v / (1.0f + (v < 0.0f ? -v : v))"),
    nn.LogSigmoid: _activation("log_sigmoid", "(v < 0.0f ? v : 0.0f) - log1pf(expf(v < 0.0f ? v : -v))"),
    nn.SELU: _activation("selu", "1.0507009874f * (v < 0.0f ? 1.6732632423f * expm1f(v) : v)"),
    nn.CELU: _activation("celu", "v < 0.0f ? alpha * expm1f(v / alpha) : v", alpha="alpha"),
    nn.ELU: _activation("elu", "v < 0.0f ? alpha * expm1f(v) : v", alpha="alpha"),
    nn.GELU: _gelu,
    nn.Hardtanh: lambda module, name: [clamp(name, "clamp", "v", module.min_val, module.max_val)],  # and ReLU6
    nn.Hardsigmoid: lambda module, name: [clamp(name, "hard_sigmoid", "(v / 6.0f + 0.5f)", 0.0, 1.0)],
    nn.Hardswish: _activation("hard_swish", "v <= -3.0f ? 0.0f : v >= 3.0f ? v : v * (v + 3.0f) / 6.0f"),
    nn.LSTM: recurrent, nn.GRU: recurrent, StructuredRNN: recurrent, LastMoment: lambda module, name: [Last(name)],
    Keep: _itself, Restore: _itself, Add: _itself,
    nn.Identity: _nothing, nn.Dropout: _nothing, nn.Dropout1d: _nothing, nn.Dropout2d: _nothing,
    nn.AlphaDropout: _nothing,
    nn.Flatten: _reshape, nn.Unflatten: _reshape, nn.MaxPool1d: _max_pool, nn.MaxPool2d: _max_pool,
    nn.AdaptiveMaxPool1d: _max_pool, nn.AdaptiveMaxPool2d: _max_pool,
    nn.AvgPool1d: _average_pool, nn.AdaptiveAvgPool1d: _average_pool, nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _average_pool, nn.Softmax: _softmax, nn.LogSoftmax: _softmax,
}  # fmt: skip
