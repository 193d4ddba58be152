"""Write the text of a C program that trains: its header, its memory, its functions."""

from __future__ import annotations

import functools
import math
import string
import textwrap
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from filigree.export.c.source import braced, c_type, header_file, in_order, literal, piece, source_file
from filigree.export.c.stages import KERNELS, elementwise_text
from filigree.export.c.training_layers import Trained
from filigree.export.c.training_options import Training

TEMPLATE, CHECKPOINT = "training.c.in", "checkpoint.c.in"
SLOPES = {  # of each activation, by its output v
    "relu": "v > 0.0f ? 1.0f : 0.0f", "leaky_relu": "v > 0.0f ? 1.0f : slope", "hyperbolic_tangent": "1.0f - v * v",
    "sigmoid": "v * (1.0f - v)", "clamp": "v > low && v < high ? 1.0f : 0.0f",
}  # fmt: skip
_COUNTED = {  # of a window of average pooling: the same as where the average is taken
    "average": "i_in < g->height && j_in < g->width",
    "padded average": "i_in + g->top < g->height + 2 * g->top && j_in + g->left < g->width + 2 * g->left",
}

_INCLUDES = "#include <stddef.h>\n#include <stdint.h>"

_HEADER = """#define ${macro}_INPUTS $inputs
#define ${macro}_OUTPUTS $outputs
#ifndef ${macro}_BATCH
#define ${macro}_BATCH $batch /* the largest batch; memory is set aside for it */
#endif

/* All that training changes. To go on later, store these bytes and put them back. Rows are outputs, or the channels of
   a convolution; of a sparse layer the connections of row r are starts[r] to starts[r + 1], columns sorted. */
$structs

/* The outputs for one sample. Functions are not reentrant. */
void ${prefix}_predict(const float *input, float *output);

/* One step on a batch, inputs (batch, ${macro}_INPUTS), $target.
   Returns the mean loss before the step. Returns -1, and does nothing, if the batch is empty or larger than
   ${macro}_BATCH$or_label. */
float ${prefix}_train_step(const float *inputs, $parameter, size_t batch, float learning_rate);"""

_REWIRE = """

/* In each sparse layer the fraction zeta of the smallest positive and of the largest negative weights goes, and every
   exact zero; as many new connections come at random empty cells, with weight 0. Outside [0, 1] nothing is done. */
void ${prefix}_rewire(float zeta, uint32_t seed);"""

_FUNCTIONS = """static void forward(const float *x, size_t batch)
{
$forward
}

void ${prefix}_predict(const float *input, float *output)
{
    forward(input, 1);
    for (size_t i = 0; i < ${macro}_OUTPUTS; ++i) {
        output[i] = ${last}_outputs[i];
    }
}

float ${prefix}_train_step(const float *inputs, $parameter, size_t batch, float learning_rate)
{
    if (batch == 0 || batch > ${macro}_BATCH) {
        return -1.0f;
    }
    forward(inputs, batch);
    const float loss = $loss(${last}_outputs, $target, ${macro}_OUTPUTS, batch, delta_0);
    if (loss < 0.0f) {
        return loss;
    }
$backward
    return loss;
}"""

_REWIRE_FUNCTION = """void ${prefix}_rewire(float zeta, uint32_t seed)
{
    uint64_t random = seed;
    if (!(zeta >= 0.0f && zeta <= 1.0f)) {
        return;
    }
    random_bits(&random);
    random += seed; /* seeds that are close begin far apart */
$rewire
}"""


def header_text(layers: Sequence[Trained], prefix: str, options: Training) -> str:
    stored = {name: array for layer in layers for name, array in layer.arrays.items()}
    velocity, loss = options.momentum > 0, options.loss
    structs = [_struct(f"{prefix}_weights", stored)]
    structs += [_struct(f"{prefix}_velocity", velocities(layers))] if velocity else []
    labelled = loss == "cross_entropy"
    text = string.Template(_HEADER + (_REWIRE if any(layer.index for layer in layers) else "")).substitute(
        prefix=prefix, macro=prefix.upper(), inputs=layers[0].inputs, outputs=layers[-1].outputs, batch=options.batch,
        structs="\n\n".join(structs), parameter=_parameter(loss),
        target="labels (batch)" if labelled else f"targets (batch, {prefix.upper()}_OUTPUTS)",
        or_label=", or a label is none of the outputs" if labelled else "",
    )  # fmt: skip
    text += "\n\n" + _checkpoint("header", prefix, velocity) if options.checkpoint else ""
    return header_file(prefix, text, _INCLUDES)


def _checkpoint(part: str, prefix: str, velocity: bool, **words: str) -> str:
    """Write a part of what saves the program's state: two structs, or one."""
    structs = [f"{prefix}_weights", *([f"{prefix}_velocity"] if velocity else [])]
    pairs = ", ".join(f"{{&{name}, sizeof {name}}}" for name in structs)
    sizes = " + ".join(f"sizeof {name}" for name in structs)
    return piece(CHECKPOINT, part, prefix=prefix, macro=prefix.upper(), parts=pairs, sizes=sizes, **words)


def source_text(layers: Sequence[Trained], name: str, prefix: str, options: Training) -> str:
    """Write `name.c`."""
    stored = {name: array for layer in layers for name, array in layer.arrays.items()}
    sparse = [layer for layer in layers if layer.index]
    macro, velocity, loss = prefix.upper(), options.momentum > 0, options.loss
    sgd = {"MOMENTUM": options.momentum, "WEIGHT_DECAY": options.weight_decay, "NESTEROV": int(options.nesterov)}
    pieces = {"update", loss, *_pieces(layers)} | ({"rewire"} if sparse else set())
    values = ",\n".join(f"    /* {name} */ {braced(array, ' ' * 8)}" for name, array in stored.items())
    memory = [f"static float {layer.label}_outputs[{macro}_BATCH * {layer.outputs}];" for layer in layers]
    memory += [f"static float delta_{i}[{macro}_BATCH * {size}];" for i, size in enumerate(delta_sizes(layers))]
    functions = _FUNCTIONS + ("\n\n" + _REWIRE_FUNCTION if sparse else "")
    words = {
        "prefix": prefix, "macro": macro, "last": layers[-1].label, "loss": loss, "parameter": _parameter(loss),
        "target": _parameter(loss).split("*")[1], "forward": _lines(_forward(layers, prefix)),
        "backward": _lines(_backward(layers, prefix, velocity)), "rewire": _lines(_rewire(sparse, prefix, velocity)),
    }  # fmt: skip
    body = [
        "\n".join(f"#define {key} {literal(value)}" for key, value in sgd.items()),
        f"#define LAYOUT {_layout(stored, velocity):#x}u /* of what is saved */" if options.checkpoint else "",
        f"{prefix}_weights_type {prefix}_weights = {{\n{values}\n}};",
        f"{prefix}_velocity_type {prefix}_velocity;" if velocity else "",
        "\n".join(f"typedef {c_type(array)} {key[:-1]}_type;" for x in sparse[:1] for key, array in x.index.items()),
        *(in_order(KERNELS, {"geometry"}) if any(layer.geometry for layer in layers) else []),
        *(layer.geometry.text for layer in layers if layer.geometry),
        "\n".join(memory), *_activations(layers), *in_order(TEMPLATE, pieces), *_pools(layers),
        string.Template(functions).substitute(words),
        _checkpoint("program", prefix, velocity) if options.checkpoint else "",
    ]  # fmt: skip
    return source_file(name, [part for part in body if part])


def _layout(stored: dict[str, np.ndarray], velocity: bool) -> int:
    """Return a number that tells the saved state of this program from that of another."""
    fields = [f"{c_type(array)} {name}[{array.size}]" for name, array in stored.items()]
    return zlib.crc32(repr((fields, velocity)).encode())


def declarations(layers: Sequence[Trained], prefix: str, options: Training) -> tuple[str, ...]:
    """Declare the functions of the program, the step first."""
    target = _parameter(options.loss)
    step = f"float {prefix}_train_step(const float *inputs, {target}, size_t batch, float learning_rate);"
    rewire = (f"void {prefix}_rewire(float zeta, uint32_t seed);",) if any(layer.index for layer in layers) else ()
    saved = (
        f"int {prefix}_{name}(const {prefix}_storage *storage);" for name in ("save", "load") if options.checkpoint
    )
    return (step, f"void {prefix}_predict(const float *input, float *output);", *rewire, *saved)


def velocities(layers: Sequence[Trained]) -> dict[str, np.ndarray]:
    """Collect the arrays that have a velocity: all that is trained."""
    return {f"{x.label}_{key}": x.arrays[f"{x.label}_{key}"] for x in layers for key in x.numbers}


def delta_sizes(layers: Sequence[Trained]) -> list[int]:
    """Size the two buffers of a sample's gradients, by turns of the outputs of the last layer, the one before, ..."""
    sizes = [layer.outputs for layer in reversed(layers[first_trained(layers) :])]
    return [max(part) for part in (sizes[::2], sizes[1::2]) if part]


def first_trained(layers: Sequence[Trained]) -> int:
    """Return the number of the first layer that has weights to train: gradients need to go no further."""
    return next(number for number, layer in enumerate(layers) if layer.numbers)


def _struct(name: str, arrays: dict[str, np.ndarray]) -> str:
    fields = "\n".join(f"    {c_type(array)} {label}[{array.size}];" for label, array in arrays.items())
    return f"typedef struct {{\n{fields}\n}} {name}_type;\nextern {name}_type {name};"


def _parameter(loss: str) -> str:
    return "const int *labels" if loss == "cross_entropy" else "const float *targets"


def _lines(statements: Sequence[str]) -> str:
    fill = functools.partial(textwrap.fill, width=120, initial_indent=" " * 4, subsequent_indent=" " * 8)
    return "\n".join(map(fill, statements))


def _activations(layers: Sequence[Trained]) -> list[str]:
    """Write the functions of each kind of activation: itself, and its slope."""
    texts = []
    for activation in {x.activation.function: x.activation for x in layers if x.activation}.values():
        parameters = "".join(f", float {name}" for name, _ in activation.numbers)
        texts.append(string.Template(elementwise_text(activation)).substitute(function=activation.function))
        words = {"function": f"{activation.function}_slope", "parameters": parameters}
        texts.append(piece(TEMPLATE, "slope", value=SLOPES[activation.function], **words))
    return texts


def _pieces(layers: Sequence[Trained]) -> set[str]:
    """Name the functions that the layers need."""
    first = first_trained(layers)
    weighted = [layer for layer in layers if layer.numbers]
    passed = layers[first + 1 :]  # what a gradient goes back through
    pieces = {f"{layer.kind}{part}" for layer in weighted for part in ("", " update")}
    pieces |= {f"{layer.kind} backward" for layer in passed if layer.numbers}
    pieces |= {"clear"} if passed else set()
    return pieces | ({"update_bias"} if any("bias" in layer.numbers for layer in weighted) else set())


def _pools(layers: Sequence[Trained]) -> list[str]:
    """Write the functions of each kind of pooling, on a sample, and of its gradient, on a batch."""
    first = first_trained(layers)
    kinds = list(dict.fromkeys(layer.kind for layer in layers if not layer.numbers))
    texts = []
    for kind in kinds:
        name, is_max = _pool_name(kind), kind == "max"
        words = {"take": piece(KERNELS, f"take {kind}"), "result": "result" if is_max else "result / (float)count"}
        texts.append(piece(KERNELS, "pool", function=name, **words))
        if any(layer.kind == kind for layer in layers[first:]):
            give = piece(TEMPLATE, "give max") if is_max else piece(TEMPLATE, "give average", counted=_COUNTED[kind])
            parameter = "const float *x," if is_max else ""
            words = {"function": f"{name}_backward", "parameter": parameter, "give": give}
            texts.append(piece(TEMPLATE, "pool backward", **words))
    return texts


def _pool_name(kind: str) -> str:
    return f"pool_{kind.replace(' ', '_')}"


def _forward(layers: Sequence[Trained], prefix: str) -> list[str]:
    lines, x = [], "x"
    for layer in layers:
        y = f"{layer.label}_outputs"
        if layer.numbers:
            bias = f"{prefix}_weights.{layer.label}_bias" if "bias" in layer.numbers else "NULL"
            values = f"{prefix}_weights.{layer.label}_values"
            lines.append(f"{layer.kind}_forward({values}, {_index(layer, prefix)}{bias}, {_sides(layer)}, {x}, {y});")
        else:
            one = f"&{layer.label}_geometry, {x} + n * {layer.inputs}, {y} + n * {layer.outputs}"
            lines += ["for (size_t n = 0; n < batch; ++n) {", f"    {_pool_name(layer.kind)}({one});", "}"]
        if layer.activation:
            lines.append(f"{layer.activation.function}({y}, batch * {layer.outputs}{_numbers(layer.activation)});")
        x = y
    return lines


def _backward(layers: Sequence[Trained], prefix: str, velocity: bool) -> list[str]:
    lines = []
    first = first_trained(layers)
    for turn, number in enumerate(range(len(layers) - 1, first - 1, -1)):
        layer, is_first = layers[number], number == first
        x = f"{layers[number - 1].label}_outputs" if number else "inputs"
        dy, dx = f"delta_{turn % 2}", f"delta_{1 - turn % 2}"
        if layer.activation:
            name, size = layer.activation.function, f"batch * {layer.outputs}"
            lines.append(f"{name}_slope({layer.label}_outputs, {dy}, {size}{_numbers(layer.activation)});")
        if not layer.numbers:
            read = f"{x}, " if layer.kind == "max" else ""
            lines.append(f"{_pool_name(layer.kind)}_backward(&{layer.label}_geometry, batch, {read}{dy}, {dx});")
            continue
        index, sides = _index(layer, prefix), _sides(layer)
        if not is_first:
            values = f"{prefix}_weights.{layer.label}_values"
            lines.append(f"{layer.kind}_backward({values}, {index}{sides}, {dy}, {dx});")
        held = _held(layer, "values", prefix, velocity)
        lines.append(f"{layer.kind}_update({held}, {index}{sides}, {x}, {dy}, learning_rate);")
        if "bias" in layer.numbers:
            held, area = _held(layer, "bias", prefix, velocity), math.prod(layer.shape[1:])
            lines.append(f"update_bias({held}, {layer.shape[0]}, {area}, batch, {dy}, learning_rate);")
    return lines


def _sides(layer: Trained) -> str:
    """Write the arguments that say what a layer's matrix is, and the batch."""
    if layer.geometry:
        return f"&{layer.label}_geometry, {layer.numbers['values'].shape[1]}, batch"
    return f"{layer.outputs}, {layer.inputs}, batch"


def _rewire(layers: Sequence[Trained], prefix: str, velocity: bool) -> list[str]:
    return [
        f"rewire({_held(x, 'values', prefix, velocity)}, {_index(x, prefix)}{x.outputs}, {x.inputs}, zeta, &random);"
        for x in layers
    ]


def _held(layer: Trained, key: str, prefix: str, velocity: bool) -> str:
    field = f"{layer.label}_{key}"
    return f"{prefix}_weights.{field}, " + (f"{prefix}_velocity.{field}" if velocity else "NULL")


def _index(layer: Trained, prefix: str) -> str:
    return "".join(f"{prefix}_weights.{layer.label}_{key}, " for key in layer.index)


def _numbers(activation: Any) -> str:
    return "".join(f", {literal(float(number))}" for _, number in activation.numbers)
