"""The steps of a C program: ops, which know no shapes yet, and the stages that they become on an input of a shape."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import scipy
import torch
from torch import nn

from filigree.config import one_line
from filigree.export.c.forms import smallest
from filigree.export.c.source import Constant, c_type, constant, literal, piece
from filigree.ops.conv import Geometry

KERNELS = "kernels.c.in"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """A step of the program: it reads the numbers of one sample at `$x` and writes at `$y`, or changes `$y`.

    Attributes:
        name, what, form: for the report. shape: of what it leaves, without the batch.
        call: the statement, with `$function` for its own function; "" where nothing is to do.
        function, text: a name and the text of that function. pieces: what else it needs of the template.
    """

    name: str
    what: str
    shape: Shape
    form: str = ""
    call: str = ""
    function: str = ""
    text: str = ""
    pieces: tuple[str, ...] = ()
    constants: tuple[Constant, ...] = ()
    in_place: bool = True


class Op(Protocol):
    """A layer before its shape is known."""

    @property
    def name(self) -> str: ...

    def stage(self, shape: Shape, label: str) -> Stage:
        """The step on an input of this shape; `label` begins the names of its constants."""
        ...


def refuse(name: str, expected: str) -> ValueError:
    return ValueError(f"export: {name!r} {expected}.")


# -- linear layers and convolutions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Affine:
    """`y = scale W x + bias`, a linear layer or, with a geometry, a convolution of `inputs` channels.

    W is a `scipy.sparse.csr_array` `(rows, columns)`, float32, or integers where there is a scale, `(1,)` or `(rows,)`.
    """

    name: str
    matrix: Any
    scale: np.ndarray | None
    bias: np.ndarray | None
    geometry: Geometry | None = None
    inputs: int = 0

    def scaled(self, factor: np.ndarray, shift: np.ndarray) -> Affine:
        """The layer with `factor y + shift` behind it, each of a number a row, float64."""
        bias = (shift if self.bias is None else self.bias * factor + shift).astype(np.float32)
        if self.scale is not None:
            return replace(self, scale=(self.scale * factor).astype(np.float32), bias=bias)
        rows = np.repeat(factor, np.diff(self.matrix.indptr))
        values = (self.matrix.data * rows).astype(np.float32)
        matrix = csr(scipy.sparse.csr_array((values, self.matrix.indices, self.matrix.indptr), self.matrix.shape))
        return replace(self, matrix=matrix, bias=bias)

    def stage(self, shape: Shape, label: str) -> Stage:
        rows, width = self.matrix.shape
        _check_finite(self.name, self.matrix.data, self.scale, self.bias)
        form = smallest(self.matrix)
        arrays = dict(form.arrays)
        result = "sum" if self.geometry is None else "y[i]"
        for part, array, sign in (("scale", self.scale, "*"), ("bias", self.bias, "+")):
            if array is not None:
                arrays[part] = array
                result += f" {sign} {part}[{'0' if len(array) == 1 and rows > 1 else 'row'}]"
        kind = "linear" if self.geometry is None else "convolution"
        add = "sum += weight * x[column];" if kind == "linear" else "tap(g, row, column, weight, x, y);"
        walk = piece(KERNELS, form.walk, add=add, **form.words)
        parameters = [f"const {c_type(array)} *{name}" for name, array in arrays.items()]
        arguments = [f"{label}_{name}" for name in arrays]
        if "width" in walk:
            parameters.append("size_t width")
            arguments.append(str(width))
        text = piece(KERNELS, kind, function="$function", parameters=", ".join(parameters), walk=walk, result=result)
        constants = [constant(f"{label}_{name}", array) for name, array in arrays.items()]
        if self.geometry is None:
            if shape != (width,):
                raise refuse(self.name, f"reads {width} numbers a sample, flat. Got {shape}")
            made = Stage(self.name, f"linear {width} -> {rows}", (rows,), form.label)
            arguments.append(str(rows))
        else:
            if len(shape) != 3 or shape[0] != self.inputs:
                raise refuse(self.name, f"reads ({self.inputs}, height, width) a sample. Got {shape}")
            out = (rows, *self.geometry.output(*shape[1:]))
            constants.append(_geometry_constant(label, shape, out, self.geometry))
            arguments.append(f"&{label}_geometry")
            what = f"convolution {'x'.join(map(str, shape))} -> {'x'.join(map(str, out))}"
            made = Stage(self.name, what, out, form.label, pieces=("geometry", "tap"))
        return replace(
            made, function=f"{kind}_by_{form.walk.removeprefix('walk ')}", text=text, constants=tuple(constants),
            in_place=False, call=f"$function({', '.join(arguments)}, $x, $y);",
        )  # fmt: skip


def _check_finite(name: str, *arrays: np.ndarray | None) -> None:
    for array in arrays:
        if array is not None and not np.isfinite(array).all():
            raise refuse(name, "has weights that are not finite")


def csr(matrix: Any) -> Any:
    """A matrix, or its nonzeros, as float32 or int32 in sorted rows without stored zeros."""
    made = scipy.sparse.csr_array(matrix)
    made = made.astype(np.float32 if made.dtype.kind == "f" else np.int32)
    made.eliminate_zeros()
    made.sort_indices()
    return made


def _geometry_constant(label: str, shape: Shape, out: Shape, g: Geometry) -> Constant:
    fields = [
        *(("channels", shape[0]), ("height", shape[1]), ("width", shape[2])),
        *(("out_channels", out[0]), ("out_height", out[1]), ("out_width", out[2])),
        *zip(("kernel_height", "kernel_width"), g.kernel, strict=True),
        *zip(("stride_height", "stride_width"), g.stride, strict=True),
        *zip(("dilation_height", "dilation_width"), g.dilation, strict=True),
        *(("top", g.padding[0]), ("left", g.padding[2]), ("groups", g.groups)),
    ]
    text = ", ".join(f".{name} = {number}" for name, number in fields)
    return Constant(f"static const geometry {label}_geometry = {{\n    {text}\n}};", 8 * len(fields))


# -- what has no matrix ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Elementwise:
    """`y = value(v)` for each number v, in C; `numbers` are the function's own arguments."""

    name: str
    function: str
    value: str
    numbers: tuple[tuple[str, float], ...] = ()

    def stage(self, shape: Shape, label: str) -> Stage:
        if any(math.isnan(number) for _, number in self.numbers):
            raise refuse(self.name, "has a number that is NaN")
        parameters = "".join(f", float {name}" for name, _ in self.numbers)
        text = piece(KERNELS, "elementwise", function="$function", parameters=parameters, value=self.value)
        arguments = ["$y", str(math.prod(shape)), *(literal(float(number)) for _, number in self.numbers)]
        return Stage(self.name, self.function, shape, "", f"$function({', '.join(arguments)});", self.function, text)


@dataclass(frozen=True)
class NoisyExpectation:
    """The expectation of a noisy hard activation (Moczulski 2019, 4.17); p one number, or one for each unit along `dim`."""

    name: str
    tanh: bool
    p: np.ndarray
    dim: int
    alpha: float
    scale: float

    def stage(self, shape: Shape, label: str) -> Stage:
        if len(self.p) > 1 and self.dim not in (0 - len(shape), 1):
            raise refuse(self.name, f"must have its units along features or channels. Got dim={self.dim} of {shape}")
        _check_finite(self.name, self.p)
        run = _run(self.name, shape, len(self.p))
        line, low = ("y[i]", "-1.0f") if self.tanh else ("0.25f * y[i] + 0.5f", "0.0f")
        text = piece(KERNELS, "noisy", function="$function", line=line, low=low)
        numbers = f"{literal(self.alpha)}, {literal(self.scale)}"
        call = f"$function($y, {math.prod(shape)}, {label}_p, {run}, {numbers});"
        name = "noisy_tanh" if self.tanh else "noisy_sigmoid"
        return Stage(self.name, name, shape, "", call, name, text, constants=(constant(f"{label}_p", self.p),))


@dataclass(frozen=True)
class ScaleShift:
    """`y = scale y + shift`, one of each a unit or channel."""

    name: str
    scale: np.ndarray
    shift: np.ndarray

    def stage(self, shape: Shape, label: str) -> Stage:
        run = _run(self.name, shape, len(self.scale))
        # "offset", as a layer called "scale" would make an array scale_shift
        arrays = {f"{label}_factor": self.scale.astype(np.float32), f"{label}_offset": self.shift.astype(np.float32)}
        _check_finite(self.name, *arrays.values())
        call = f"scale_shift($y, {math.prod(shape)}, {', '.join(arrays)}, {run});"
        constants = tuple(constant(name, array) for name, array in arrays.items())
        return Stage(self.name, "scale and shift", shape, "", call, pieces=("scale_shift",), constants=constants)


def _run(name: str, shape: Shape, units: int) -> int:
    """How many numbers follow each other in memory for each unit; one number stands for all."""
    if units not in (1, shape[0]):
        raise refuse(name, f"has {units} units. Got {shape}")
    return math.prod(shape) if units == 1 else math.prod(shape[1:])


@dataclass(frozen=True)
class Softmax:
    """Over the outputs of a sample, in place; `dim` as torch counts it."""

    name: str
    logarithm: bool
    dim: int | None

    def stage(self, shape: Shape, label: str) -> Stage:
        if len(shape) != 1 or self.dim not in (None, 1, -1):
            raise refuse(self.name, f"must be over the numbers of a flat sample, dim=1. Got dim={self.dim} of {shape}")
        name = "log_softmax" if self.logarithm else "softmax"
        return Stage(self.name, name, shape, "", f"{name}($y, {shape[0]});", pieces=(name,))


@dataclass(frozen=True)
class Reshape:
    """Flatten and its like: another shape of the same numbers, found by running the module on nothing."""

    name: str
    module: nn.Module

    def stage(self, shape: Shape, label: str) -> Stage:
        out = _shape_after(self.name, self.module, shape)
        if math.prod(out) != math.prod(shape):
            raise refuse(self.name, "must leave the batch as it is")
        return Stage(self.name, "reshape", out)


@dataclass(frozen=True)
class Pool:
    """Pooling over windows. `adaptive` average pooling has windows that divide the input."""

    name: str
    module: Any
    take: str  # max, average or padded average

    def stage(self, shape: Shape, label: str) -> Stage:
        if len(shape) != 3:
            raise refuse(self.name, f"reads (channels, height, width) a sample. Got {shape}")
        out, module = _shape_after(self.name, self.module, shape), self.module
        if isinstance(module, nn.AdaptiveAvgPool2d):
            if any(side % sides for side, sides in zip(shape[1:], out[1:], strict=True)):
                raise refuse(self.name, f"must have windows of one size. Got {shape} -> {out}")
            kernel = stride = (shape[1] // out[1], shape[2] // out[2])
            padding, dilation = (0, 0), (1, 1)
        else:
            kernel, stride, padding = (_pair(getattr(module, key)) for key in ("kernel_size", "stride", "padding"))
            dilation = _pair(getattr(module, "dilation", 1))
        geometry = Geometry(kernel, stride, (padding[0], padding[0], padding[1], padding[1]), dilation, 1)
        result = "result" if self.take == "max" else "result / (float)count"
        name = f"pool_{self.take.replace(' ', '_')}"
        text = piece(KERNELS, "pool", function="$function", take=piece(KERNELS, f"take {self.take}"), result=result)
        what = f"{self.take} {'x'.join(map(str, shape))} -> {'x'.join(map(str, out))}"
        return Stage(
            self.name, what, out, "", f"$function(&{label}_geometry, $x, $y);", name, text, ("geometry",),
            (_geometry_constant(label, shape, out, geometry),), in_place=False,
        )  # fmt: skip


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return int(first), int(second)


def _shape_after(name: str, module: nn.Module, shape: Shape) -> Shape:
    try:
        out = module(torch.empty(2, *shape, device="meta"))
    except (IndexError, RuntimeError, ValueError) as error:
        raise refuse(name, f"does not take {shape}: {one_line(error)}") from None
    if len(out) != 2:
        raise refuse(name, "must leave the batch as it is")
    return tuple(out.shape[1:])
