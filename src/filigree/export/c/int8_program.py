"""Write a network of 8-bit integers as a C program: `void m_predict(const int8_t *input, int8_t *output)`."""

from __future__ import annotations

import functools
import math
import string
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filigree.export.c.forms import Form, smallest
from filigree.export.c.inference import calls, named_stages
from filigree.export.c.int8_network import Int8Network, Placed
from filigree.export.c.int8_products import Product
from filigree.export.c.int8_recurrent import TANH, Cells
from filigree.export.c.int8_steps import Flat, IntegerSoftmax, Pooling, Slopes, Sum, Table
from filigree.export.c.kept import Keep, buffers, name_buffers
from filigree.export.c.recurrent import LastMoment, declared_by_moment, functions_by_moment
from filigree.export.c.source import (
    CConstant,
    CLayer,
    CMemory,
    Program,
    Trial,
    braces,
    c_type,
    constant,
    header_file,
    in_order,
    largest,
    literal,
    piece,
    source_file,
)
from filigree.export.c.stages import KERNELS, Stage, geometry_constant, in_runs, sides, stage_of
from filigree.ops.conv import Geometry

_INT8 = "int8.c.in"
_TYPES = ("int8_t", "int8_t")
_SHARED = {"geometry", "lowest"}  # pieces that programs of floats have too

_HEADER = """$moments#define ${macro}_INPUTS $inputs
#define ${macro}_OUTPUTS $outputs

/* An integer q stands for SCALE * (q - ZERO). */
#define ${macro}_INPUT_SCALE $in_scale
#define ${macro}_INPUT_ZERO ($in_zero)
#define ${macro}_OUTPUT_SCALE $out_scale
#define ${macro}_OUTPUT_ZERO ($out_zero)

/* One sample $shape to $out, in C's order. The two must not overlap. Not reentrant. No floats. */
$predict;

$by_moment/* Inputs in floats, scaled as the model scales them, as integers; for those who have floats. */
void ${prefix}_quantize(const float *input, int8_t *output);$quantize_step"""

# Forms whose weights are read in any order: a weight of the row, and how many elements a row has.
_DIRECT = {
    "walk dense": ("weights[column]", "width"),
    "walk packed": (
        "((weights[column / $each] >> (column % $each * $bits) & $mask) - $middle)", "(width + $each - 1) / $each"
    ),
}  # fmt: skip

_QUANTIZE = """void ${prefix}_quantize$of_moment(const float *input, int8_t *output)
{
$constants
    for (size_t i = 0; i < $size; ++i) {
        const float v = factor[$unit] * input[i] + offset[$unit];
        output[i] = (int8_t)(v >= 0.0f ? (v < 255.0f ? (int32_t)v - 128 : 127) : -128);
    }
}"""

_QUANTIZE_MOMENTS = """void ${prefix}_quantize(const float *input, int8_t *output)
{
    for (size_t i = 0; i < ${macro}_INPUTS; i += $size) {
        ${prefix}_quantize_step(input + i, output + i);
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
    placed_steps = _with_table(network.program)
    kept = [placed.step for placed in network.program]
    name_buffers(kept)
    sample = network.program[0].shape if network.program else network.shape
    stages = named_stages(placed_steps, sample, lambda placed, _, label: _stage(placed.step, placed, label))
    statements, sizes = calls(stages, sample)
    memory = largest([
        *(array for stage in stages for array in stage.memory), *buffers(kept, "int8_t"),
        *(CMemory(buffer, size, "int8_t") for buffer, size in sizes.items()),
    ])  # fmt: skip
    pieces = {piece for stage in stages for piece in stage.pieces} | {"copy" for line in statements if "copy(" in line}
    predict = f"void {prefix}_predict(const int8_t *input, int8_t *output)"
    words = {
        "name": name, "prefix": prefix, "macro": prefix.upper(), "inputs": str(math.prod(network.shape)),
        "outputs": str(math.prod(network.out_shape)), "in_scale": literal(network.before.scale),
        "in_zero": str(network.before.zero), "out_scale": literal(network.after.scale),
        "out_zero": str(network.after.zero), "shape": str(network.shape), "out": str(network.out_shape),
        "predict": predict, "moments": "", "by_moment": "", "quantize_step": "",
    }  # fmt: skip
    functions: tuple[str, ...] = (f"{predict};",)
    bodies = [braces(predict, statements)]
    if network.by_moment:
        resets = [f"clear({array.name}, sizeof {array.name});" for array in memory if array.lasts]
        bodies = functions_by_moment(prefix, statements, resets, "int8_t")
        functions += (f"void {prefix}_step(const int8_t *input, int8_t *output);", f"void {prefix}_reset(void);")
        words["moments"] = f"#define {prefix.upper()}_MOMENTS {network.shape[0]}\n"
        words["by_moment"] = f"{declared_by_moment(prefix, sample, 'int8_t')}\n\n"
        words["quantize_step"] = (
            f"\n\n/* The same of one moment. */\nvoid {prefix}_quantize_step(const float *input, int8_t *output);"
        )
    parts = [
        *in_order(KERNELS, pieces & _SHARED), *in_order(_INT8, pieces - _SHARED),
        *dict.fromkeys(text for stage in stages for text in stage.texts),
        *(constant.text for stage in stages for constant in stage.constants),
        *(array.text for array in memory), *bodies, _quantize(network, words),
    ]  # fmt: skip
    times = network.shape[0] if network.by_moment else 1
    layers = [CLayer(s.name, s.what, s.form, sum(c.bytes for c in s.constants), s.macs * times) for s in stages]
    return Program(
        source_file(name, parts),
        header_file(prefix, string.Template(_HEADER).substitute(words), "#include <stdint.h>"), layers,
        sum(layer.bytes for layer in layers), sum(array.bytes for array in memory), network.shape,
        functools.partial(_trial, network, string.Template(_MAIN).substitute(words)), functions,
        math.prod(network.out_shape), _TYPES,
        f"8-bit integers: outputs on the example are {network.error:.2g} from those in floats on average, the largest "
        f"is {network.largest:.3g}",
    )  # fmt: skip


def _with_table(program: list[Placed]) -> list[Placed]:
    """Put the table of the hyperbolic tangent before the first layer that reads it."""
    first = next((i for i, placed in enumerate(program) if isinstance(placed.step, Cells)), len(program))
    tables = [Placed("gates", _Tanh(), each.shape, each.shape) for each in program[first : first + 1]]
    return [*program[:first], *tables, *program[first:]]


def _trial(network: Int8Network, main: str, x: Tensor) -> Trial:
    """Compare on stored inputs, and on as many random integers."""
    generator = torch.Generator().manual_seed(0)
    q = network.stored(x)
    q = torch.cat([q, torch.randint(-128, 128, q.shape, generator=generator)])[:: 2 if len(q) > 8 else 1]
    expected = network.integers(q).numpy().astype(np.int8)
    return Trial(main, q.numpy().astype(np.int8).tobytes(), expected, f"{len(q)} samples, bit for bit", 0.0)


def _quantize(network: Int8Network, words: dict[str, str]) -> str:
    """Write the function that stores inputs; a network that reads moments gets one for each of these, too."""
    arrays = {"factor": network.factor, "offset": network.offset}
    units = max(map(len, arrays.values()))
    arrays = {key: np.broadcast_to(array, units).astype(np.float32) for key, array in arrays.items()}
    size = math.prod(network.shape[network.by_moment :])
    text = string.Template(_QUANTIZE).safe_substitute(
        constants="\n".join(f"    {constant(key, array).text}" for key, array in arrays.items()),
        unit=f"i / {size // units}" if units > 1 else "0", of_moment="_step" * network.by_moment,
    )  # fmt: skip
    text = f"{text}\n\n{_QUANTIZE_MOMENTS}" if network.by_moment else text
    return string.Template(text).substitute(words, size=size)


@functools.singledispatch
def _stage(step: Any, placed: Placed, label: str) -> Stage:
    raise TypeError(f"a step of 8-bit integers was expected. Got {type(step).__name__}.")


@dataclass(frozen=True)
class _Walk:
    """It says how a program reads the weights of a product: by constants, arguments, and a function on them."""

    form: Form
    constants: tuple[CConstant, ...]
    arguments: list[str]
    function: str
    text: str
    pieces: tuple[str, ...]


def _walk(step: Product, label: str, kind: str, add: str = "sum += weight * x[column];") -> _Walk:
    form = smallest(step.matrix)
    arrays = {f"{label}_{name}": array for name, array in form.arrays.items()}
    rest = {f"{label}_bias": step.bias, f"{label}_m": step.m, f"{label}_s": step.s}
    walk = piece(_INT8, form.walk, add=add, **form.words)
    parameters = [f"const {c_type(array)} *{name}" for name, array in form.arrays.items()]
    width = []
    if "width" in walk:
        parameters.append("size_t width")
        width.append(str(step.matrix.shape[1]))
    text = piece(_INT8, kind, function="$function", parameters=", ".join(parameters), walk=walk)
    return _Walk(
        form, tuple(constant(name, array) for name, array in (arrays | rest).items()), [*arrays, *width, *rest],
        f"{kind}_by_{form.walk.removeprefix('walk ')}", text, ("lowest",) * ("lowest(" in walk),
    )  # fmt: skip


@_stage.register
def _(step: Product, placed: Placed, label: str) -> Stage:
    rows, width = step.matrix.shape
    if step.geometry is not None:
        return _convolution(step, step.geometry, placed, label)
    walk = _walk(step, label, "linear")
    call = f"$function({', '.join([*walk.arguments, str(rows), str(step.after.zero)])}, $x, $y);"
    return Stage(
        step.name, f"linear {width} -> {rows}", placed.out, walk.form.label, call, walk.function, walk.text,
        ("rounded", "rescale", *walk.pieces), walk.constants, False, _macs(step, walk.form),
    )  # fmt: skip


def _macs(step: Product, form: Form) -> int:
    return int(math.prod(step.matrix.shape) if form.walk == "walk dense" else step.matrix.nnz)


def _convolution(step: Product, geometry: Geometry, placed: Placed, label: str) -> Stage:
    """Write a convolution output by output, or, by the nonzeros of its weights, with memory for the sums of a map."""
    walk = _walk(step, label, "convolution", "tap(g, row, column, weight, x, before, sums);")
    plane = math.prod(placed.out[1:])
    rest = [f"{label}_{name}" for name in ("bias", "m", "s")]
    zeros = [f"&{label}_geometry", str(step.before.zero), str(step.after.zero)]
    stage = Stage(
        step.name, f"convolution {sides(placed.shape)} -> {sides(placed.out)}", placed.out, walk.form.label,
        f"$function({', '.join([*walk.arguments, *zeros])}, sums, $x, $y);", walk.function, walk.text,
        ("rounded", "rescale", "geometry", "tap", *walk.pieces),
        (*walk.constants, geometry_constant(label, placed.shape, placed.out, geometry)), False,
        plane * _macs(step, walk.form), memory=(CMemory("sums", plane, "int32_t"),),
    )  # fmt: skip
    if walk.form.walk not in _DIRECT:
        return stage
    ((name, array),) = walk.form.arrays.items()
    weight, count = (string.Template(text).substitute(walk.form.words) for text in _DIRECT[walk.form.walk])
    return replace(
        stage, text=piece(_INT8, "direct", function="$function", type=c_type(array), weight=weight, bytes=count),
        call=f"$function({', '.join([f'{label}_{name}', *rest, *zeros])}, $x, $y);", memory=(),
        function=f"convolution_of_{walk.form.walk.removeprefix('walk ')}", pieces=("rounded", "rescale", "geometry"),
    )  # fmt: skip


@_stage.register
def _(step: Keep, placed: Placed, label: str) -> Stage:
    return stage_of(step, placed.shape, label)


@_stage.register
def _(step: Sum, placed: Placed, label: str) -> Stage:
    numbers = [math.prod(placed.shape), step.b, step.a, step.offset, step.s, step.after.zero]
    call = f"add({step.kept.name}, $y, {', '.join(map(str, numbers))});"
    return Stage(step.name, "sum", placed.out, "", call, pieces=("add",))


class _Tanh:
    """It is the table that recurrent layers read."""


@_stage.register
def _(step: _Tanh, placed: Placed, label: str) -> Stage:
    constants = (constant("tanh_table", TANH),)
    return Stage(placed.name, "tanh, sigmoid", placed.out, f"table of {len(TANH)}", constants=constants)


@_stage.register
def _(step: Cells, placed: Placed, label: str) -> Stage:
    walks = [_walk(step.from_input, f"{label}_input", "gates"), _walk(step.from_state, f"{label}_state", "gates")]
    rows = step.from_state.matrix.shape[0]
    shared, first = (rows, 0) if step.kind == "lstm" else (2 * step.units, step.units)
    own = [str(step.bits)] * (step.kind == "lstm")
    numbers = ["sums", str(step.units), *own, str(step.m), str(step.s), "tanh_table"]
    call = [
        f"$function({', '.join([*walks[0].arguments, str(rows), '0'])}, $x, sums);",
        f"$of_state({', '.join([*walks[1].arguments, str(rows), str(shared)])}, {label}_state, sums + {first});",
        f"{step.kind}({', '.join(numbers)}, {label}_cells, {label}_state, $y);",
    ]
    forms = dict.fromkeys(walk.form.label for walk in walks)
    memory = (
        CMemory("sums", 4 * step.units, "int32_t"), CMemory(f"{label}_cells", step.units, "int16_t", lasts=True),
        CMemory(f"{label}_state", step.units, "int8_t", lasts=True),
    )  # fmt: skip
    return Stage(
        step.name, f"{step.kind} {placed.shape[0]} -> {step.units}", placed.out, "; ".join(forms), "\n".join(call),
        walks[0].function, walks[0].text,
        ("clear", "rounded", "rescale", "tanh_of", "sigmoid_of", step.kind, *walks[0].pieces, *walks[1].pieces),
        (*walks[0].constants, *walks[1].constants), False,
        _macs(step.from_input, walks[0].form) + _macs(step.from_state, walks[1].form), memory=memory,
        others={"of_state": (walks[1].function, walks[1].text)},
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
    return Stage(step.name, "parametric_relu", placed.out, "", call, pieces=("rounded", "rescale", "slopes"),
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
    call = in_runs("softmax", step.sizes, f", {label}_table")
    return Stage(step.name, "softmax", placed.out, "table of 256", call, pieces=("softmax",),
                 constants=(constant(f"{label}_table", step.table),))  # fmt: skip


@_stage.register
def _(step: Flat, placed: Placed, label: str) -> Stage:
    return Stage(step.name, "last moment" if isinstance(step.module, LastMoment) else "reshape", placed.out)
