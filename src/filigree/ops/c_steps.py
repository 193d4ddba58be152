"""Steps of a C program are described plainly: by matrices, scales, names and geometry, without text.

A layer gives them by its `c_form(name)`; `filigree.export.c` writes them as C. A step knows no shapes yet. In place of
a step there may be a pair of a name and a module, which stands for the steps of that module.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
from torch import Tensor, nn

from filigree.ops.conv import Geometry


def refuse(name: str, expected: str) -> ValueError:
    """Make the error that says what was expected of the layer called `name`."""
    return ValueError(f"export: {name!r} {expected}.")


@dataclass(frozen=True)
class Affine:
    """`y = scale W x + bias`: a linear layer or, with a geometry, a convolution of `inputs` channels.

    W is a `scipy.sparse.csr_array` `(rows, columns)`, float32, or integers where there is a scale, `(1,)` or `(rows,)`.
    """

    name: str
    matrix: Any
    scale: np.ndarray | None
    bias: np.ndarray | None
    geometry: Geometry | None = None
    inputs: int = 0

    def scaled(self, factor: np.ndarray, shift: np.ndarray) -> Affine:
        """Return the layer followed by `factor y + shift`, a number of each a row, float64."""
        bias = (shift if self.bias is None else self.bias * factor + shift).astype(np.float32)
        if self.scale is not None:
            return replace(self, scale=(self.scale * factor).astype(np.float32), bias=bias)
        rows = np.repeat(factor, np.diff(self.matrix.indptr))
        values = (self.matrix.data * rows).astype(np.float32)
        matrix = csr(scipy.sparse.csr_array((values, self.matrix.indices, self.matrix.indptr), self.matrix.shape))
        return replace(self, matrix=matrix, bias=bias)


@dataclass(frozen=True)
class Elementwise:
    """`y = value(v)` for each number v; `value` is an expression in C, `numbers` are the function's own arguments."""

    name: str
    function: str
    value: str
    numbers: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class NoisyExpectation:
    """It is the expectation of a noisy hard activation (Moczulski 2019, eq. 4.17); p has one number, or one a unit."""

    name: str
    tanh: bool
    p: np.ndarray
    dim: int
    alpha: float
    scale: float


@dataclass(frozen=True)
class ScaleShift:
    """`y = scale y + shift`, one of each a unit or channel, which are along `dim`, counted as torch does."""

    name: str
    scale: np.ndarray
    shift: np.ndarray
    dim: int = 1


@dataclass(frozen=True)
class ParametricReLU:
    """`y = max(y, 0) + slope min(y, 0)`; slope has one number, or one a unit or channel."""

    name: str
    slope: np.ndarray


@dataclass(frozen=True)
class Softmax:
    """It is the softmax over the outputs of a sample, or its logarithm; `dim` is counted as torch does.

    With `sizes` it is one over each run of so many outputs in turn.
    """

    name: str
    logarithm: bool
    dim: int | None
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reshape:
    """It gives the same numbers another shape, which `module` says."""

    name: str
    module: nn.Module


@dataclass(frozen=True)
class Pool:
    """It pools over windows as torch's `module` does. Windows of adaptive average pooling must divide the input."""

    name: str
    module: Any
    take: str  # max, average or padded average


@dataclass(frozen=True)
class TrainedLinear:
    """`y = W x + bias` of which both are trained, in a program that trains: float32.

    `values` are W `(rows, columns)` or, with an index, its connections in CSR order; zeros among them stay. With a
    geometry it is a convolution of `inputs` channels. Of a sample's gradients of y only the `top` of largest magnitude
    count, where it is given: of equals the first.
    """

    name: str
    rows: int
    columns: int
    values: np.ndarray
    bias: np.ndarray | None
    indices: np.ndarray | None = None
    indptr: np.ndarray | None = None
    geometry: Geometry | None = None
    inputs: int = 0
    top: int | None = None


# -- how layers make them --------------------------------------------------------------------------------------------


def floats(tensor: Tensor | None) -> Any:
    """Return a tensor's numbers as a float32 array; None stays None."""
    return None if tensor is None else tensor.detach().cpu().float().numpy()


def csr(matrix: Any) -> Any:
    """Store a matrix as float32 or int32 in sorted rows without zeros."""
    rows = scipy.sparse.csr_array(matrix)
    rows = rows.astype(np.float32 if rows.dtype.kind == "f" else np.int32)
    rows.eliminate_zeros()
    rows.sort_indices()
    return rows


def linear(layer: Any, name: str, matrix: Any, scale: Any = None) -> list[Any]:
    """Describe a linear layer with this matrix and the layer's own `bias` and, where it has one, `relu`."""
    steps = [Affine(name, matrix, scale, floats(layer.bias))]
    return [*steps, relu(name)] if getattr(layer, "relu", False) is True else steps


def convolution(layer: Any, name: str, matrix: Any, geometry: Geometry, scale: Any = None) -> list[Any]:
    """Describe a convolution with this matrix and the layer's own bias and channels."""
    _check_padding(layer, name)
    return [Affine(name, matrix, scale, floats(layer.bias), geometry, layer.in_channels)]


def _check_padding(layer: Any, name: str) -> None:
    if layer.padding_mode != "zeros":
        raise refuse(name, f"must have padding_mode='zeros'. Got {layer.padding_mode!r}")


def trained_linear(layer: Any, name: str) -> TrainedLinear:
    """Describe an `nn.Linear`, or what has its weight and bias, in a program that trains."""
    return TrainedLinear(name, layer.out_features, layer.in_features, floats(layer.weight), floats(layer.bias))


def trained_convolution(layer: Any, name: str, geometry: Geometry) -> TrainedLinear:
    """Describe an `nn.Conv2d` in a program that trains."""
    _check_padding(layer, name)
    weight, bias = floats(layer.weight.flatten(1)), floats(layer.bias)
    rows, columns = weight.shape
    return TrainedLinear(name, rows, columns, weight, bias, geometry=geometry, inputs=layer.in_channels)


def relu(name: str) -> Elementwise:
    return Elementwise(name, "relu", "v < 0.0f ? 0.0f : v")


def clamp(name: str, function: str, inner: str, low: float, high: float) -> Elementwise:
    """Describe the expression `inner`, clipped to [low, high]."""
    value = f"{inner} < low ? low : {inner} > high ? high : {inner}"
    return Elementwise(name, function, value, (("low", low), ("high", high)))
