"""Write the text of a C program that trains: its header, its memory, its functions."""

from __future__ import annotations

import functools
import string
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from filigree.export.c.source import braced, c_type, header_file, in_order, literal, piece, source_file
from filigree.export.c.stages import elementwise_text
from filigree.ops.c_steps import Elementwise

TEMPLATE = "training.c.in"
SLOPES = {  # of each activation, by its output v
    "relu": "v > 0.0f ? 1.0f : 0.0f", "leaky_relu": "v > 0.0f ? 1.0f : slope", "hyperbolic_tangent": "1.0f - v * v",
    "sigmoid": "v * (1.0f - v)", "clamp": "v > low && v < high ? 1.0f : 0.0f",
}  # fmt: skip

_INCLUDES = "#include <stddef.h>\n#include <stdint.h>"

_HEADER = """#define ${macro}_INPUTS $inputs
#define ${macro}_OUTPUTS $outputs
#ifndef ${macro}_BATCH
#define ${macro}_BATCH $batch /* the largest batch; memory is set aside for it */
#endif

/* All that training changes. To go on later, store these bytes and put them back. Rows are outputs; of a sparse layer
   the connections of row r are starts[r] to starts[r + 1], columns sorted. */
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


@dataclass
class Trained:
    """It holds a layer that is trained, sparse where it has an index; in C its arrays are called `{label}_{key}`.

    `numbers`: values, and bias where it has one, float32. `index`: columns and starts of a sparse layer.
    """

    name: str
    label: str
    rows: int
    width: int
    numbers: dict[str, np.ndarray]
    index: dict[str, np.ndarray]
    activation: Elementwise | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Name the arrays as in C; one without elements holds a zero, as C has no arrays of nothing."""
        stored = {**self.numbers, **self.index}.items()
        return {f"{self.label}_{key}": array if array.size else np.zeros(1, array.dtype) for key, array in stored}


def header_text(layers: Sequence[Trained], prefix: str, batch: int, loss: str, velocity: bool) -> str:
    stored = {name: array for layer in layers for name, array in layer.arrays.items()}
    structs = [_struct(f"{prefix}_weights", stored)]
    structs += [_struct(f"{prefix}_velocity", velocities(layers))] if velocity else []
    labelled = loss == "cross_entropy"
    text = string.Template(_HEADER + (_REWIRE if any(layer.index for layer in layers) else "")).substitute(
        prefix=prefix, macro=prefix.upper(), inputs=layers[0].width, outputs=layers[-1].rows, batch=batch,
        structs="\n\n".join(structs), parameter=_parameter(loss),
        target="labels (batch)" if labelled else f"targets (batch, {prefix.upper()}_OUTPUTS)",
        or_label=", or a label is none of the outputs" if labelled else "",
    )  # fmt: skip
    return header_file(prefix, text, _INCLUDES)


def source_text(layers: Sequence[Trained], name: str, prefix: str, loss: str, options: dict[str, float]) -> str:
    """Write `name.c`; `options` are the numbers of SGD by the names of their macros."""
    stored = {name: array for layer in layers for name, array in layer.arrays.items()}
    sparse = [layer for layer in layers if layer.index]
    macro, velocity = prefix.upper(), options["MOMENTUM"] > 0
    pieces = {"update", loss} | {"sparse" if layer.index else "dense" for layer in layers}
    pieces |= {"update_bias"} if any("bias" in layer.numbers for layer in layers) else set()
    pieces |= {"rewire"} if sparse else set()
    values = ",\n".join(f"    /* {name} */ {braced(array, ' ' * 8)}" for name, array in stored.items())
    memory = [f"static float {layer.label}_outputs[{macro}_BATCH * {layer.rows}];" for layer in layers]
    memory += [f"static float delta_{i}[{macro}_BATCH * {size}];" for i, size in enumerate(delta_sizes(layers))]
    functions = _FUNCTIONS + ("\n\n" + _REWIRE_FUNCTION if sparse else "")
    words = {
        "prefix": prefix, "macro": macro, "last": layers[-1].label, "loss": loss, "parameter": _parameter(loss),
        "target": _parameter(loss).split("*")[1], "forward": _lines(_forward(layers, prefix)),
        "backward": _lines(_backward(layers, prefix, velocity)), "rewire": _lines(_rewire(sparse, prefix, velocity)),
    }  # fmt: skip
    body = [
        "\n".join(f"#define {key} {literal(value)}" for key, value in options.items()),
        f"{prefix}_weights_type {prefix}_weights = {{\n{values}\n}};",
        f"{prefix}_velocity_type {prefix}_velocity;" if velocity else "",
        "\n".join(f"typedef {c_type(array)} {key[:-1]}_type;" for x in sparse[:1] for key, array in x.index.items()),
        "\n".join(memory), *_activations(layers), *in_order(TEMPLATE, pieces),
        string.Template(functions).substitute(words),
    ]  # fmt: skip
    return source_file(name, [part for part in body if part])


def declarations(layers: Sequence[Trained], prefix: str, loss: str) -> tuple[str, ...]:
    """Declare the functions of the program, the step first."""
    step = f"float {prefix}_train_step(const float *inputs, {_parameter(loss)}, size_t batch, float learning_rate);"
    rewire = (f"void {prefix}_rewire(float zeta, uint32_t seed);",) if any(layer.index for layer in layers) else ()
    return (step, f"void {prefix}_predict(const float *input, float *output);", *rewire)


def velocities(layers: Sequence[Trained]) -> dict[str, np.ndarray]:
    """Collect the arrays that have a velocity: all that is trained."""
    return {f"{x.label}_{key}": x.arrays[f"{x.label}_{key}"] for x in layers for key in x.numbers}


def delta_sizes(layers: Sequence[Trained]) -> list[int]:
    """Size the two buffers of a sample's gradients, by turns of the outputs of the last layer, the one before, ..."""
    sizes = [layer.rows for layer in reversed(layers)]
    return [max(part) for part in (sizes[::2], sizes[1::2]) if part]


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


def _forward(layers: Sequence[Trained], prefix: str) -> list[str]:
    lines, x = [], "x"
    for layer in layers:
        y = f"{layer.label}_outputs"
        kind, read = ("sparse", _index(layer, prefix)) if layer.index else ("dense", "")
        bias = f"{prefix}_weights.{layer.label}_bias" if "bias" in layer.numbers else "NULL"
        values = f"{prefix}_weights.{layer.label}_values"
        lines.append(f"{kind}_forward({values}, {read}{bias}, {layer.rows}, {layer.width}, batch, {x}, {y});")
        if layer.activation:
            lines.append(f"{layer.activation.function}({y}, batch * {layer.rows}{_numbers(layer.activation)});")
        x = y
    return lines


def _backward(layers: Sequence[Trained], prefix: str, velocity: bool) -> list[str]:
    lines = []
    for number, layer in enumerate(reversed(layers)):
        before = layers[-number - 2] if layer is not layers[0] else None
        x = f"{before.label}_outputs" if before else "inputs"
        dy, dx = f"delta_{number % 2}", f"delta_{1 - number % 2}" if before else "NULL"
        sides = f"{layer.rows}, {layer.width}, batch"
        if layer.activation:
            name, size = layer.activation.function, f"batch * {layer.rows}"
            lines.append(f"{name}_slope({layer.label}_outputs, {dy}, {size}{_numbers(layer.activation)});")
        kind, read = ("sparse", _index(layer, prefix)) if layer.index else ("dense", "")
        held = _held(layer, "values", prefix, velocity)
        lines.append(f"{kind}_backward({held}, {read}{sides}, {x}, {dy}, {dx}, learning_rate);")
        if "bias" in layer.numbers:
            held = _held(layer, "bias", prefix, velocity)
            lines.append(f"update_bias({held}, {layer.rows}, batch, {dy}, learning_rate);")
    return lines


def _rewire(layers: Sequence[Trained], prefix: str, velocity: bool) -> list[str]:
    return [
        f"rewire({_held(x, 'values', prefix, velocity)}, {_index(x, prefix)}{x.rows}, {x.width}, zeta, &random);"
        for x in layers
    ]


def _held(layer: Trained, key: str, prefix: str, velocity: bool) -> str:
    field = f"{layer.label}_{key}"
    return f"{prefix}_weights.{field}, " + (f"{prefix}_velocity.{field}" if velocity else "NULL")


def _index(layer: Trained, prefix: str) -> str:
    return "".join(f"{prefix}_weights.{layer.label}_{key}, " for key in ("columns", "starts"))


def _numbers(activation: Any) -> str:
    return "".join(f", {literal(float(number))}" for _, number in activation.numbers)
