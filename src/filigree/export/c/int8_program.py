"""Write a network of 8-bit integers as a C program: `void m_predict(const int8_t *input, int8_t *output)`."""

from __future__ import annotations

import functools
import math
import string
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filigree.export.c.forms import smallest
from filigree.export.c.inference import calls, named_stages
from filigree.export.c.int8_network import Int8Network, Placed
from filigree.export.c.int8_steps import Flat, IntegerSoftmax, Pooling, Product, Slopes, Table
from filigree.export.c.source import (
    CLayer,
    Program,
    Trial,
    c_type,
    constant,
    header_file,
    in_order,
    literal,
    piece,
    source_file,
)
from filigree.export.c.stages import KERNELS, Stage, geometry_constant, sides

_INT8 = "int8.c.in"
_TYPES = ("int8_t", "int8_t")
_SHARED = {"geometry", "lowest"}  # pieces that programs of floats have too

_HEADER = """#define ${macro}_INPUTS $inputs
#define ${macro}_OUTPUTS $outputs

/* An integer q stands for SCALE * (q - ZERO). */
#define ${macro}_INPUT_SCALE $in_scale
#define ${macro}_INPUT_ZERO ($in_zero)
#define ${macro}_OUTPUT_SCALE $out_scale
#define ${macro}_OUTPUT_ZERO ($out_zero)

/* One sample $shape to $out, in C's order. The two must not overlap. Not reentrant. No floats. */
$predict;

/* Inputs in floats, scaled as the model scales them, as integers; for those who have floats. */
void ${prefix}_quantize(const float *input, int8_t *output);"""

# Forms whose weights are read in any order: a weight of the row, and how many elements a row has.
_DIRECT = {
    "walk dense": ("weights[column]", "width"),
    "walk packed": (
        "((weights[column / $each] >> (column % $each * $bits) & $mask) - $middle)", "(width + $each - 1) / $each"
    ),
}  # fmt: skip

_QUANTIZE = """void ${prefix}_quantize(const float *input, int8_t *output)
{
$constants
    for (size_t i = 0; i < ${macro}_INPUTS; ++i) {
        const float v = factor[i / $run] * input[i] + offset[i / $run];
        output[i] = (int8_t)(v >= 0.0f ? (v < 255.0f ? (int32_t)v - 128 : 127) : -128);
    }
}"""

_MAIN = """
#include <stdio.h>
#include "$name.h"

int main(void)
{
    static int8_t x[${macro}_INPUTS], y[${macro}_OUTPUTS];
    while (fread(x, sizeof x, 1, stdin) == 1) {
        ${prefix}_predict(x, y);
        if (fwrite(y, sizeof y, 1, stdout) != 1) {
            return 1;
        }
    }
    return 0;
}
"""


def int8_program(model: nn.Module, calibration: Tensor | None, name: str, prefix: str) -> Program:
    """Write the files `name.c` and `name.h` of a model in 8-bit integers, with scales from the calibration data."""
    network = Int8Network(model, calibration)
    stages = named_stages(network.program, network.shape, lambda placed, _, label: _stage(placed.step, placed, label))
    statements, sizes = calls(stages, network.shape)
    pieces = {piece for stage in stages for piece in stage.pieces} | {"copy" for line in statements if "copy(" in line}
    predict = f"void {prefix}_predict(const int8_t *input, int8_t *output)"
    planes = [stage.plane for stage in stages if isinstance(stage, _Walked)]
    words = {
        "name": name, "prefix": prefix, "macro": prefix.upper(), "inputs": str(math.prod(network.shape)),
        "outputs": str(math.prod(network.out_shape)), "in_scale": literal(network.before.scale),
        "in_zero": str(network.before.zero), "out_scale": literal(network.after.scale),
        "out_zero": str(network.after.zero), "shape": str(network.shape), "out": str(network.out_shape),
        "predict": predict,
    }  # fmt: skip
    parts = [
        *in_order(KERNELS, pieces & _SHARED), *in_order(_INT8, pieces - _SHARED),
        *dict.fromkeys(stage.text for stage in stages if stage.text),
        *(constant.text for stage in stages for constant in stage.constants),
        *([f"static int32_t sums[{max(planes)}];"] if planes else []),
        *(f"static int8_t {buffer}[{size}];" for buffer, size in sizes.items()),
        "\n".join([predict, "{", *(f"    {line}" for line in statements), "}"]),
        _quantize(network, words),
    ]  # fmt: skip
    layers = [CLayer(s.name, s.what, s.form, sum(c.bytes for c in s.constants), s.macs) for s in stages]
    return Program(
        source_file(name, parts),
        header_file(prefix, string.Template(_HEADER).substitute(words), "#include <stdint.h>"), layers,
        sum(layer.bytes for layer in layers), sum(sizes.values()) + 4 * max(planes, default=0), network.shape,
        functools.partial(_trial, network, string.Template(_MAIN).substitute(words)), (f"{predict};",),
        math.prod(network.out_shape), _TYPES,
        f"8-bit integers: outputs on the example are {network.error:.2g} from those in floats on average, the largest "
        f"is {network.largest:.3g}",
    )  # fmt: skip


def _trial(network: Int8Network, main: str, x: Tensor) -> Trial:
    """Compare on stored inputs, and on as many random integers."""
    generator = torch.Generator().manual_seed(0)
    q = network.stored(x)
    q = torch.cat([q, torch.randint(-128, 128, q.shape, generator=generator)])[:: 2 if len(q) > 8 else 1]
    expected = network.integers(q).numpy().astype(np.int8)
    return Trial(main, q.numpy().astype(np.int8).tobytes(), expected, f"{len(q)} samples, bit for bit", 0.0)


def _quantize(network: Int8Network, words: dict[str, str]) -> str:
    arrays = {"factor": network.factor, "offset": network.offset}
    units = max(map(len, arrays.values()))
    arrays = {key: np.broadcast_to(array, units).astype(np.float32) for key, array in arrays.items()}
    run = math.prod(network.shape) // units
    lines = "\n".join(f"    {constant(key, array).text}" for key, array in arrays.items())
    return string.Template(_QUANTIZE).substitute(words, constants=lines, run=run)


@functools.singledispatch
def _stage(step: Any, placed: Placed, label: str) -> Stage:
    raise TypeError(f"a step of 8-bit integers was expected. Got {type(step).__name__}.")


@dataclass(frozen=True)
class _Walked(Stage):
    """It is a convolution by the nonzeros of its weights, which needs memory for the sums of a map."""

    plane: int = 0


@_stage.register
def _(step: Product, placed: Placed, label: str) -> Stage:
    form = smallest(step.matrix)
    rows, width = step.matrix.shape
    values = {f"{label}_{name}": array for name, array in form.arrays.items()}
    rest = {f"{label}_bias": step.bias, f"{label}_m": step.m, f"{label}_s": step.s}
    constants = [constant(name, array) for name, array in (values | rest).items()]
    macs = math.prod(placed.out[1:]) * (rows * width if form.walk == "walk dense" else step.matrix.nnz)
    zeros = [str(step.before.zero), str(step.after.zero)]
    walk_name = form.walk.removeprefix("walk ")
    if step.geometry is not None:
        constants.append(geometry_constant(label, placed.shape, placed.out, step.geometry))
        rest[f"&{label}_geometry"] = np.empty(0)
        what = f"convolution {sides(placed.shape)} -> {sides(placed.out)}"
        if form.walk in _DIRECT:
            ((_, array),) = values.items()
            weight, count = (string.Template(text).substitute(form.words) for text in _DIRECT[form.walk])
            text = piece(_INT8, "direct", function="$function", type=c_type(array), weight=weight, bytes=count)
            call = f"$function({', '.join([*values, *rest, *zeros])}, $x, $y);"
            return Stage(
                step.name, what, placed.out, form.label, call, f"convolution_of_{walk_name}", text,
                ("rescale", "geometry"), tuple(constants), False, macs,
            )  # fmt: skip
    kind = "linear" if step.geometry is None else "convolution"
    add = "sum += weight * x[column];" if kind == "linear" else "tap(g, row, column, weight, x, before, sums);"
    walk = piece(_INT8, form.walk, add=add, **form.words)
    parameters = [f"const {c_type(array)} *{name}" for name, array in form.arrays.items()]
    names, finds = list(values), ("lowest",) * ("lowest(" in walk)
    if "width" in walk:
        parameters.append("size_t width")
        names.append(str(width))
    text = piece(_INT8, kind, function="$function", parameters=", ".join(parameters), walk=walk)
    if step.geometry is None:
        call = f"$function({', '.join([*names, *rest, str(rows), zeros[1]])}, $x, $y);"
        return Stage(
            step.name, f"linear {width} -> {rows}", placed.out, form.label, call, f"linear_by_{walk_name}", text,
            ("rescale", *finds), tuple(constants), False, macs,
        )  # fmt: skip
    call = f"$function({', '.join([*names, *rest, *zeros])}, sums, $x, $y);"
    return _Walked(
        step.name, what, placed.out, form.label, call, f"convolution_by_{walk_name}", text,
        ("rescale", "geometry", "tap", *finds), tuple(constants), False, macs, math.prod(placed.out[1:]),
    )  # fmt: skip


@_stage.register
def _(step: Table, placed: Placed, label: str) -> Stage:
    call = f"look_up($y, {math.prod(placed.shape)}, {label}_table);"
    return Stage(step.name, step.what, placed.out, "table of 256", call, pieces=("look_up",),
                 constants=(constant(f"{label}_table", step.table),))  # fmt: skip


@_stage.register
def _(step: Slopes, placed: Placed, label: str) -> Stage:
    arrays = {f"{label}_{name}": array for name, array in (("m", step.m), ("s", step.s), ("signs", step.signs))}
    size = math.prod(placed.shape)
    call = f"slopes($y, {size}, {', '.join(arrays)}, {size // len(step.signs)}, {step.before.zero}, {step.after.zero});"
    return Stage(step.name, "parametric_relu", placed.out, "", call, pieces=("rescale", "slopes"),
                 constants=tuple(constant(name, array) for name, array in arrays.items()))  # fmt: skip


@_stage.register
def _(step: Pooling, placed: Placed, label: str) -> Stage:
    result = piece(_INT8, "result max" if step.take == "max" else "result average")
    text = piece(_INT8, "pool", function="$function", take=piece(_INT8, f"take {step.take}"), result=result)
    what = f"{step.take} {sides(placed.shape)} -> {sides(placed.out)}"
    call = f"$function(&{label}_geometry, {step.zero}, $x, $y);"
    constants = (geometry_constant(label, placed.shape, placed.out, step.geometry),)
    name = f"pool_{step.take.replace(' ', '_')}"
    return Stage(step.name, what, placed.out, "", call, name, text, ("geometry",), constants, in_place=False)


@_stage.register
def _(step: IntegerSoftmax, placed: Placed, label: str) -> Stage:
    call = f"softmax($y, {placed.shape[0]}, {label}_table);"
    return Stage(step.name, "softmax", placed.out, "table of 256", call, pieces=("softmax",),
                 constants=(constant(f"{label}_table", step.table),))  # fmt: skip


@_stage.register
def _(step: Flat, placed: Placed, label: str) -> Stage:
    return Stage(step.name, "reshape", placed.out)
