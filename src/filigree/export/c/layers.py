"""What each module becomes in a C program."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
from torch import Tensor, nn

from filigree import nn as layers
from filigree.export.c.ops import (
    Affine,
    Elementwise,
    NoisyExpectation,
    Op,
    Pool,
    Reshape,
    ScaleShift,
    Softmax,
    csr,
    refuse,
)
from filigree.nn.integer.integer_layer import IntegerLayer
from filigree.nn.mollified.mollified_activation import MollifiedActivation
from filigree.nn.sparse.masked import MaskedLayer
from filigree.nn.sparse.sparse_conv2d import conv_geometry
from filigree.nn.sparse.sparse_layer import SparseLayer


def is_known(module: nn.Module) -> bool:
    """Whether `lower` knows a module; a subclass of your own with a forward of its own is looked into instead."""
    own = type(module).forward.__module__.split(".")[0] not in ("torch", "filigree")
    return not own and lower.dispatch(type(module)) is not lower.dispatch(object)


@functools.singledispatch
def lower(module: nn.Module, name: str) -> list[Op]:
    """The ops of a module in eval mode. `ValueError` names one that has no form in C."""
    raise refuse(name, f"is a {type(module).__name__}, which cannot be written as C")


def folded(ops: Sequence[Op]) -> list[Op]:
    """Each scale and shift put into the weights that it follows directly."""
    made: list[Op] = []
    for op in ops:
        before = made[-1] if made else None
        if isinstance(op, ScaleShift) and isinstance(before, Affine) and len(op.scale) == before.matrix.shape[0]:
            made[-1] = before.scaled(op.scale, op.shift)
        else:
            made.append(op)
    return made


# -- weights ---------------------------------------------------------------------------------------------------------


def _numbers(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach().cpu().float().numpy()


def _with_relu(name: str, op: Op, module: Any) -> list[Op]:
    return [op, relu(name)] if getattr(module, "relu", False) is True else [op]


def _convolution(name: str, matrix: Any, scale: Any, module: Any) -> list[Op]:
    if module.padding_mode != "zeros":
        raise refuse(name, f"must have padding_mode='zeros'. Got {module.padding_mode!r}")
    geometry = module._geometry if hasattr(module, "_geometry") else conv_geometry(module)
    return [Affine(name, matrix, scale, _numbers(module.bias), geometry, module.in_channels)]


@lower.register
def _(module: nn.Linear, name: str) -> list[Op]:
    op = Affine(name, csr(_numbers(module.weight)), None, _numbers(module.bias))
    return _with_relu(name, op, module)


@lower.register
def _(module: nn.Conv2d, name: str) -> list[Op]:
    return _convolution(name, csr(_numbers(module.weight.flatten(1))), None, module)


@lower.register
def _(module: SparseLayer, name: str) -> list[Op]:
    stored = _numbers(module.values), module.indices.cpu().numpy(), module.indptr.cpu().numpy()
    matrix = csr(scipy.sparse.csr_array(stored, shape=(module.out_features, module.in_features)))
    if isinstance(module, layers.SparseConv2d):
        return _convolution(name, matrix, None, module)
    return _with_relu(name, Affine(name, matrix, None, _numbers(module.bias)), module)


@lower.register
def _(module: MaskedLayer, name: str) -> list[Op]:
    return lower(module.sparse(), name)


@lower.register
def _(module: IntegerLayer, name: str) -> list[Op]:
    if module.activation is not None:
        raise refuse(name, "samples its activations, which cannot be written as C: give MonteCarlo(activations=None)")
    before: list[Op] = []
    if module.input_scale is not None:
        scale = _numbers(module.input_scale)
        before = [ScaleShift(name, scale, np.zeros_like(scale))]
    matrix, scale = csr(module.integers().cpu().numpy()), _numbers(module.scale)
    if isinstance(module, layers.IntegerConv2d):
        return before + _convolution(name, matrix, scale, module)
    return before + _with_relu(name, Affine(name, matrix, scale, _numbers(module.bias)), module)


@lower.register
def _(module: layers.LowRankLinear, name: str) -> list[Op]:
    return [*lower(module.down, f"{name}.down"), *lower(module.up, f"{name}.up")]


@lower.register
def _(module: layers.PartitionedConnect, name: str) -> list[Op]:
    return lower(module.dense(), name)


@lower.register(nn.BatchNorm1d)
@lower.register(nn.BatchNorm2d)
def _(module: nn.BatchNorm1d | nn.BatchNorm2d, name: str) -> list[Op]:
    if module.running_mean is None or module.running_var is None:
        raise refuse(name, "has no running statistics, so that its output depends on the batch")
    mean, variance = (t.detach().cpu().double().numpy() for t in (module.running_mean, module.running_var))
    ones = np.ones(len(mean))
    weight, bias = (d if t is None else t.detach().cpu().double().numpy()
                    for t, d in ((module.weight, ones), (module.bias, 0 * ones)))  # fmt: skip
    factor = weight / np.sqrt(variance + module.eps)
    return [ScaleShift(name, factor, bias - mean * factor)]


# -- activations -----------------------------------------------------------------------------------------------------


def relu(name: str) -> Op:
    return Elementwise(name, "relu", "v < 0.0f ? 0.0f : v")


def _clamp(name: str, function: str, inner: str, low: float, high: float) -> Op:
    value = f"{inner} < low ? low : {inner} > high ? high : {inner}"
    return Elementwise(name, function, value, (("low", low), ("high", high)))


@lower.register(nn.ReLU)
@lower.register(layers.NoisyReLU)
def _(module: nn.Module, name: str) -> list[Op]:
    return [relu(name)]


@lower.register
def _(module: nn.LeakyReLU, name: str) -> list[Op]:
    return [Elementwise(name, "leaky_relu", "v < 0.0f ? slope * v : v", (("slope", module.negative_slope),))]


@lower.register
def _(module: nn.Tanh, name: str) -> list[Op]:
    return [Elementwise(name, "hyperbolic_tangent", "tanhf(v)")]


@lower.register
def _(module: nn.Sigmoid, name: str) -> list[Op]:
    return [Elementwise(name, "sigmoid", "1.0f / (1.0f + expf(-v))")]


@lower.register
def _(module: nn.SiLU, name: str) -> list[Op]:
    return [Elementwise(name, "silu", "v / (1.0f + expf(-v))")]


@lower.register
def _(module: nn.ELU, name: str) -> list[Op]:
    return [Elementwise(name, "elu", "v < 0.0f ? alpha * expm1f(v) : v", (("alpha", module.alpha),))]


@lower.register
def _(module: nn.GELU, name: str) -> list[Op]:
    if module.approximate == "tanh":
        value = "0.5f * v * (1.0f + tanhf(0.7978845608f * (v + 0.044715f * v * v * v)))"
        return [Elementwise(name, "gelu_by_tanh", value)]
    return [Elementwise(name, "gelu", "0.5f * v * (1.0f + erff(0.7071067812f * v))")]


@lower.register
def _(module: nn.Hardtanh, name: str) -> list[Op]:  # and ReLU6
    return [_clamp(name, "clamp", "v", module.min_val, module.max_val)]


@lower.register
def _(module: nn.Hardsigmoid, name: str) -> list[Op]:
    return [_clamp(name, "hard_sigmoid", "(v / 6.0f + 0.5f)", 0.0, 1.0)]


@lower.register(layers.NoisyHardTanh)
@lower.register(layers.NoisyHardSigmoid)
def _(module: Any, name: str) -> list[Op]:
    tanh = isinstance(module, layers.NoisyHardTanh)
    if module.exact and module.kind in ("NANI", "NANIL", "NANIS"):
        raise refuse(name, "has an exact expectation of noise at its input, which cannot be written as C")
    if module.kind in ("NANI", "NANIL", "NANIS"):
        if tanh:
            return [_clamp(name, "clamp", "v", -1.0, 1.0)]
        return [_clamp(name, "hard_sigmoid_of_4", "(0.25f * v + 0.5f)", 0.0, 1.0)]
    scale = math.copysign(module.c * module.mean, 1 if module.alpha <= 1 else -1)
    return [NoisyExpectation(name, tanh, _numbers(module.p), module.dim, module.alpha, scale)]


@lower.register
def _(module: MollifiedActivation, name: str) -> list[Op]:
    if module.expected and module.p:
        raise refuse(name, f"is at level {module.p:.3g}, whose expectation cannot be written as C: anneal it to 0")
    made = lower(getattr(nn, module.name)(), name)
    at_zero = 0.0 if module.shift_back else module.function.at_zero
    return made if not at_zero else [*made, ScaleShift(name, np.ones(1), np.full(1, -at_zero))]


@lower.register(nn.Identity)
@lower.register(nn.Dropout)
@lower.register(nn.Dropout1d)
@lower.register(nn.Dropout2d)
@lower.register(nn.AlphaDropout)
@lower.register(layers.PartitionedDropout)
def _(module: nn.Module, name: str) -> list[Op]:
    return []


# -- shapes ----------------------------------------------------------------------------------------------------------


@lower.register(nn.Flatten)
@lower.register(nn.Unflatten)
def _(module: nn.Module, name: str) -> list[Op]:
    return [Reshape(name, module)]


@lower.register
def _(module: nn.MaxPool2d, name: str) -> list[Op]:
    if module.return_indices:
        raise refuse(name, "must return no indices")
    return [Pool(name, module, "max")]


@lower.register
def _(module: nn.AvgPool2d, name: str) -> list[Op]:
    if module.divisor_override is not None:
        raise refuse(name, "must have no divisor_override")
    return [Pool(name, module, "padded average" if module.count_include_pad else "average")]


@lower.register
def _(module: nn.AdaptiveAvgPool2d, name: str) -> list[Op]:
    return [Pool(name, module, "average")]


@lower.register(nn.Softmax)
@lower.register(nn.LogSoftmax)
def _(module: nn.Softmax | nn.LogSoftmax, name: str) -> list[Op]:
    return [Softmax(name, isinstance(module, nn.LogSoftmax), module.dim)]
