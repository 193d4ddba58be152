"""Write the steps of a C program as text: a step (`filigree.ops.c_steps`) becomes a stage on an input of a shape."""

from __future__ import annotations

import functools
import itertools
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from filigree.config import one_line
from filigree.export.c.forms import Form, smallest
from filigree.export.c.kept import Add, Keep, Restore
from filigree.export.c.source import CConstant, CMemory, c_type, constant, literal, piece
from filigree.ops.c_steps import (
    Affine,
    Elementwise,
    NoisyExpectation,
    ParametricReLU,
    Pool,
    Reshape,
    ScaleShift,
    Softmax,
    refuse,
)  # fmt: skip
from filigree.ops.conv import Geometry

KERNELS = "kernels.c.in"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """A stage of the program reads the numbers of one sample at `$x` and writes at `$y`, or changes `$y`.

    Attributes:
        name, what, form: for the report. shape: of what it leaves, without the batch.
        call: the statements, a line each, with `$function` for its own function; "" where nothing is to do.
        function, text: a name and the text of that function. pieces: what else it needs of the template.
        others: names and texts of more functions, by the words that stand for them in `call`.
        in_place: whether `$y` is what is there already. only_reads: whether it leaves that as it is.
        macs: multiply-adds a sample. memory: static arrays that it needs; equal names share.
    """

    name: str
    what: str
    shape: Shape
    form: str = ""
    call: str = ""
    function: str = ""
    text: str = ""
    pieces: tuple[str, ...] = ()
    constants: tuple[CConstant, ...] = ()
    in_place: bool = True
    macs: int = 0
    only_reads: bool = field(default=False, kw_only=True)
    memory: tuple[CMemory, ...] = field(default=(), kw_only=True)
    others: dict[str, tuple[str, str]] = field(default_factory=dict, kw_only=True)

    @property
    def functions(self) -> dict[str, tuple[str, str]]:
        """Names and texts of its functions, by the words that stand for them."""
        return ({"function": (self.function, self.text)} if self.text else {}) | self.others

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.functions.values()]

    def named(self, names: dict[str, str]) -> Stage:
        """Give its functions these names, by the words that stand for them."""
        written = {
            word: (names[word], string.Template(text).safe_substitute(function=names[word]))
            for word, (_, text) in self.functions.items()
        }
        function, text = written.pop("function", ("", ""))
        call = string.Template(self.call).safe_substitute(names)
        return replace(self, function=function, text=text, others=written, call=call)

    def names(self, label: str) -> set[str]:
        """Return what it alone defines: constants and memory, whose names begin with its label."""
        defined = {constant.name for constant in self.constants} | {array.name for array in self.memory}
        return {name for name in defined if name.startswith(f"{label}_")}


@functools.singledispatch
def stage_of(step: Any, shape: Shape, label: str) -> Stage:
    """Write a step on an input of this shape; `label` begins the names of its constants."""
    raise TypeError(f"c_form must return steps of filigree.ops.c_steps. Got {type(step).__name__}.")


@stage_of.register
def _(step: Affine, shape: Shape, label: str) -> Stage:
    rows, width = step.matrix.shape
    check_finite(step.name, step.matrix.data, step.scale, step.bias)
    form = smallest(step.matrix)
    arrays = dict(form.arrays)
    result = "sum" if step.geometry is None else "y[i]"
    for part, array, sign in (("scale", step.scale, "*"), ("bias", step.bias, "+")):
        if array is not None:
            arrays[part] = array
            result += f" {sign} {part}[{'0' if len(array) == 1 and rows > 1 else 'row'}]"
    kind = "linear" if step.geometry is None else "convolution"
    add = "sum += weight * x[column];" if kind == "linear" else "tap(g, row, column, weight, x, y);"
    walk = piece(KERNELS, form.walk, add=add, **form.words)
    parameters = [f"const {c_type(array)} *{name}" for name, array in arrays.items()]
    arguments = [f"{label}_{name}" for name in arrays]
    if "width" in walk:
        parameters.append("size_t width")
        arguments.append(str(width))
    words = {"function": "$function", "parameters": ", ".join(parameters), "result": result}
    pieces: tuple[str, ...] = ("vectors", "geometry", "add_scaled", "tap", *(["lowest"] if "lowest(" in walk else []))
    if kind == "linear":
        text, pieces = _linear_text(form, walk, words)
    else:
        text = piece(KERNELS, kind, walk=walk, **words)
    constants = [constant(f"{label}_{name}", array) for name, array in arrays.items()]
    if step.geometry is None:
        if shape != (width,):
            raise refuse(step.name, f"reads {width} numbers a sample, flat. Got {shape}")
        reported = Stage(step.name, f"linear {width} -> {rows}", (rows,), form.label, pieces=pieces)
        arguments.append(str(rows))
    else:
        if len(shape) != 3 or shape[0] != step.inputs:
            raise refuse(step.name, f"reads ({step.inputs}, height, width) a sample. Got {shape}")
        out = (rows, *step.geometry.output(*shape[1:]))
        constants.append(geometry_constant(label, shape, out, step.geometry))
        arguments.append(f"&{label}_geometry")
        what = f"convolution {sides(shape)} -> {sides(out)}"
        reported = Stage(step.name, what, out, form.label, pieces=pieces)
    return replace(
        reported, function=f"{kind}_by_{form.walk.removeprefix('walk ')}", text=text, constants=tuple(constants),
        in_place=False, call=f"$function({', '.join(arguments)}, $x, $y);",
        macs=math.prod(reported.shape[1:]) * (rows * width if form.walk == "walk dense" else step.matrix.nnz),
    )  # fmt: skip


def _linear_text(form: Form, walk: str, words: dict[str, str]) -> tuple[str, tuple[str, ...]]:
    """Write the function of a linear layer, several numbers at a time where it can be, and name what it needs."""
    kind = c_type(form.arrays["values"]) if "values" in form.arrays else ""
    if form.walk == "walk dense" and kind in ("float", "int8_t"):
        text = piece(KERNELS, "linear in vectors", load=f"LOAD_{kind.upper()}", **words)
        return text, ("vectors", f"load {kind}")
    if form.walk == "walk indices":
        return piece(KERNELS, "sparse linear", **words), ()
    return piece(KERNELS, "linear", walk=walk, **words), ("lowest",) * ("lowest(" in walk)


@stage_of.register
def _(step: Elementwise, shape: Shape, label: str) -> Stage:
    if any(math.isnan(number) for _, number in step.numbers):
        raise refuse(step.name, "has a number that is NaN")
    arguments = ["$y", str(math.prod(shape)), *(literal(float(number)) for _, number in step.numbers)]
    call = f"$function({', '.join(arguments)});"
    return Stage(step.name, step.function, shape, "", call, step.function, elementwise_text(step))


def elementwise_text(step: Elementwise) -> str:
    """Write the function of an activation, with `$function` for its name."""
    parameters = "".join(f", float {name}" for name, _ in step.numbers)
    return piece(KERNELS, "elementwise", function="$function", parameters=parameters, value=step.value)


@stage_of.register
def _(step: NoisyExpectation, shape: Shape, label: str) -> Stage:
    if len(step.p) > 1 and step.dim not in (0 - len(shape), 1):
        raise refuse(step.name, f"must have its units along features or channels. Got dim={step.dim} of {shape}")
    check_finite(step.name, step.p)
    run = _run(step.name, shape, len(step.p))
    line, low = ("y[i]", "-1.0f") if step.tanh else ("0.25f * y[i] + 0.5f", "0.0f")
    text = piece(KERNELS, "noisy", function="$function", line=line, low=low)
    numbers = f"{literal(step.alpha)}, {literal(step.scale)}"
    call = f"$function($y, {math.prod(shape)}, {label}_p, {run}, {numbers});"
    name = "noisy_tanh" if step.tanh else "noisy_sigmoid"
    return Stage(step.name, name, shape, "", call, name, text, constants=(constant(f"{label}_p", step.p),))


@stage_of.register
def _(step: ScaleShift, shape: Shape, label: str) -> Stage:
    run = _run(step.name, shape, len(step.scale))
    arrays = {f"{label}_factor": step.scale.astype(np.float32), f"{label}_offset": step.shift.astype(np.float32)}
    check_finite(step.name, *arrays.values())
    call = f"scale_shift($y, {math.prod(shape)}, {', '.join(arrays)}, {run});"
    constants = tuple(constant(name, array) for name, array in arrays.items())
    return Stage(step.name, "scale and shift", shape, "", call, pieces=("scale_shift",), constants=constants)


@stage_of.register
def _(step: ParametricReLU, shape: Shape, label: str) -> Stage:
    run = _run(step.name, shape, len(step.slope))
    check_finite(step.name, step.slope)
    call = f"parametric_relu($y, {math.prod(shape)}, {label}_slope, {run});"
    constants = (constant(f"{label}_slope", step.slope),)
    return Stage(step.name, "parametric_relu", shape, "", call, pieces=("parametric_relu",), constants=constants)


@stage_of.register
def _(step: Softmax, shape: Shape, label: str) -> Stage:
    if len(shape) != 1 or step.dim not in (None, 1, -1):
        expected = f"must be over the numbers of a flat sample, dim=1. Got dim={step.dim} of {shape}"
        raise refuse(step.name, expected)
    name = "log_softmax" if step.logarithm else "softmax"
    return Stage(step.name, name, shape, "", in_runs(name, step.sizes or shape), pieces=(name,))


def in_runs(function: str, sizes: Sequence[int], rest: str = "") -> str:
    """Write a call for each run of so many numbers in turn; `rest` are further arguments."""
    starts = itertools.accumulate(sizes[:-1], initial=0)
    calls = zip(starts, sizes, strict=True)
    return " ".join(f"{function}($y{f' + {at}' if at else ''}, {size}{rest});" for at, size in calls)


@stage_of.register
def _(step: Reshape, shape: Shape, label: str) -> Stage:
    out = shape_after(step.name, step.module, shape)
    if math.prod(out) != math.prod(shape):
        raise refuse(step.name, "must leave the batch as it is")
    return Stage(step.name, "reshape", out)


@stage_of.register
def _(step: Keep, shape: Shape, label: str) -> Stage:
    kept = step.kept
    if isinstance(step, Restore):
        call = f"copy({kept.name}, $y, {math.prod(kept.shape)});"
        return Stage(step.name, "restored", kept.shape, "", call, pieces=("copy",), in_place=False)
    if isinstance(step, Add):
        if shape != kept.shape:
            raise refuse(step.name, f"must add tensors of one shape. Got {kept.shape} and {shape}")
        return Stage(step.name, "sum", shape, "", f"add({kept.name}, $y, {math.prod(shape)});", pieces=("add",))
    kept.shape = shape
    call = f"copy($y, {kept.name}, {math.prod(shape)});"
    return Stage(step.name, "kept", shape, "", call, pieces=("copy",), only_reads=True)


@stage_of.register
def _(step: Pool, shape: Shape, label: str) -> Stage:
    if len(shape) != 3:
        raise refuse(step.name, f"reads (channels, height, width) a sample. Got {shape}")
    out, geometry = pool_geometry(step, shape)
    result = "result" if step.take == "max" else "result / (float)count"
    name = f"pool_{step.take.replace(' ', '_')}"
    text = piece(KERNELS, "pool", function="$function", take=piece(KERNELS, f"take {step.take}"), result=result)
    return Stage(
        step.name, f"{step.take} {sides(shape)} -> {sides(out)}", out, "", f"$function(&{label}_geometry, $x, $y);",
        name, text, ("geometry",), (geometry_constant(label, shape, out, geometry),), in_place=False,
    )  # fmt: skip


def pool_geometry(step: Pool, shape: Shape) -> tuple[Shape, Geometry]:
    """Return the shape that pooling leaves of a sample of this one, and its windows."""
    out, module = shape_after(step.name, step.module, shape), step.module
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        if any(before % after for before, after in zip(shape[1:], out[1:], strict=True)):
            raise refuse(step.name, f"must have windows of one size. Got {shape} -> {out}")
        kernel = stride = (shape[1] // out[1], shape[2] // out[2])
        padding, dilation = (0, 0), (1, 1)
    else:
        kernel, stride, padding = (_pair(getattr(module, key)) for key in ("kernel_size", "stride", "padding"))
        dilation = _pair(getattr(module, "dilation", 1))
    geometry = Geometry(kernel, stride, (padding[0], padding[0], padding[1], padding[1]), dilation, 1)
    return out, geometry


def check_finite(name: str, *arrays: np.ndarray | None) -> None:
    for array in arrays:
        if array is not None and not np.isfinite(array).all():
            raise refuse(name, "has weights that are not finite")


def _run(name: str, shape: Shape, units: int) -> int:
    """Count the numbers that follow each other in memory for each unit; one number stands for all."""
    if units not in (1, shape[0]):
        raise refuse(name, f"has {units} units. Got {shape}")
    return math.prod(shape) if units == 1 else math.prod(shape[1:])


def geometry_constant(label: str, shape: Shape, out: Shape, g: Geometry) -> CConstant:
    fields = [
        *(("channels", shape[0]), ("height", shape[1]), ("width", shape[2])),
        *(("out_channels", out[0]), ("out_height", out[1]), ("out_width", out[2])),
        *zip(("kernel_height", "kernel_width"), g.kernel, strict=True),
        *zip(("stride_height", "stride_width"), g.stride, strict=True),
        *zip(("dilation_height", "dilation_width"), g.dilation, strict=True),
        *(("top", g.padding[0]), ("left", g.padding[2]), ("groups", g.groups)),
    ]
    text = "\n".join(
        f"    {number}{',' * (i + 1 < len(fields))} /* {name} */" for i, (name, number) in enumerate(fields)
    )
    name = f"{label}_geometry"
    return CConstant(name, f"static const geometry {name} = {{\n{text}\n}};", 4 * len(fields))


def sides(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return int(first), int(second)


def shape_after(name: str, module: nn.Module, shape: Shape) -> Shape:
    """Run a module without numbers to see what shape it makes of a sample of this one."""
    try:
        out = module(torch.empty(2, *shape, device="meta"))
    except (IndexError, RuntimeError, ValueError) as error:
        raise refuse(name, f"does not take {shape}: {one_line(error)}") from None
    if len(out) != 2:
        raise refuse(name, "must leave the batch as it is")
    return tuple(out.shape[1:])
