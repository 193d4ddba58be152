"""Write the text of a C program that trains: its header, its memory, its functions."""

from __future__ import annotations

import functools
import string
import textwrap
import zlib
from collections.abc import Sequence

import numpy as np

from filigree.export.c.source import braced, c_type, constant, header_file, in_order, literal, piece, source_file
from filigree.export.c.stages import KERNELS
from filigree.export.c.training_calls import (
    TEMPLATE,
    WEIGHTS,
    activations,
    backward,
    buffers,
    forward,
    pieces,
    pools,
    rewire_at_random,
)
from filigree.export.c.training_layers import Trained
from filigree.export.c.training_options import Training

CHECKPOINT = "checkpoint.c.in"
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

_RULE = """

/* In each sparse layer the fraction zeta of the smallest positive and of the largest negative weights goes, and every
   exact zero; as many new connections come $where, with weight 0.
   Outside [0, 1] nothing is done. */
"""
_REWIRE = {
    "random": _RULE.replace("$where", "at random empty cells") + "void ${prefix}_rewire(float zeta, uint32_t seed);",
    "gradient": _RULE.replace("$where", "at the empty cells of the largest gradients on the batch").replace(
        " */", " Returns as a step\n   does, and takes none. */"
    )
    + "float ${prefix}_rewire(float zeta, const float *inputs, $parameter, size_t batch);",
}

_FUNCTIONS = """static void forward(const float *x, size_t batch)
{
$forward
}

/* What a step and a rewiring begin with: returns the loss, whose gradient is in delta_0 then; -1: refused. */
static float prepare(const float *inputs, $parameter, size_t batch)
{
    if (batch == 0 || batch > ${macro}_BATCH) {
        return -1.0f;
    }
    forward(inputs, batch);
    return $loss(${last}_outputs, $target, ${macro}_OUTPUTS, batch, delta_0);
}

static void backward(${reads}size_t batch, float learning_rate$zeta)
{
$backward
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
    const float loss = prepare(inputs, $target, batch);
    if (loss >= 0.0f) {
        backward(${read}batch, learning_rate$none);
    }
    return loss;
}"""

_REWIRE_FUNCTIONS = {
    "random": """void ${prefix}_rewire(float zeta, uint32_t seed)
{
    uint64_t random = seed;
    if (!(zeta >= 0.0f && zeta <= 1.0f)) {
        return;
    }
    random_bits(&random);
    random += seed; /* seeds that are close begin far apart */
$rewire
}""",
    "gradient": """float ${prefix}_rewire(float zeta, const float *inputs, $parameter, size_t batch)
{
    const float loss = zeta >= 0.0f && zeta <= 1.0f ? prepare(inputs, $target, batch) : -1.0f;
    if (loss >= 0.0f) {
        backward(${read}batch, 0.0f, zeta);
    }
    return loss;
}""",
}


def header_text(layers: Sequence[Trained], prefix: str, options: Training) -> str:
    velocity, loss = options.momentum > 0, options.loss
    structs = [_struct(f"{prefix}_weights", trained_arrays(layers))]
    structs += [_struct(f"{prefix}_velocity", velocities(layers))] if velocity else []
    labelled = loss == "cross_entropy"
    text = string.Template(_HEADER + _REWIRE.get(rewiring(layers, options), "")).substitute(
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
    stored, frozen = trained_arrays(layers), frozen_arrays(layers)
    macro, velocity, rewires = prefix.upper(), options.momentum > 0, rewiring(layers, options)
    numbers = {"MOMENTUM": options.momentum, "WEIGHT_DECAY": options.weight_decay, "NESTEROV": int(options.nesterov)}
    if options.adaptive:
        numbers |= dict(zip(("LEAST", "MOST"), options.adaptive, strict=True))
    values = ",\n".join(f"    /* {name} */ {braced(array, ' ' * 8)}" for name, array in stored.items())
    words = {
        "prefix": prefix, "macro": macro, "last": layers[-1].label, "loss": options.loss,
        "parameter": _parameter(options.loss), "target": _parameter(options.loss).split("*")[1],
        "forward": _lines(forward(layers, prefix)), "backward": _lines(backward(layers, prefix, options)),
        "rewire": _lines(rewire_at_random(layers, prefix, options)),
        "reads": "const float *inputs, " * layers[0].is_trained, "read": "inputs, " * layers[0].is_trained,
        "zeta": ", float zeta" if options.grow == "gradient" else "",
        "none": ", -1.0f" if options.grow == "gradient" else "",
    }  # fmt: skip
    functions = "\n\n".join(part for part in (_FUNCTIONS, _REWIRE_FUNCTIONS.get(rewires, "")) if part)
    index = {key: array for layer in layers for key, array in layer.index.items()}
    body = [
        "\n".join(f"#define {key} {literal(value)}" for key, value in numbers.items()),
        f"#define LAYOUT {_layout(stored, velocity):#x}u /* of what is saved */" if options.checkpoint else "",
        f"{prefix}_weights_type {prefix}_weights = {{\n{values}\n}};",
        f"{prefix}_velocity_type {prefix}_velocity;" if velocity else "",
        *(constant(name, array).text for name, array in frozen.items()),
        "\n".join(
            f"typedef {kind} {of}_type;"
            for of, kind in (
                ("weight", WEIGHTS[options.weights]), *((key[:-1], c_type(array)) for key, array in index.items())
            )
        ),
        *(in_order(KERNELS, {"geometry"}) if any(layer.geometry for layer in layers) else []),
        *(layer.geometry.text for layer in layers if layer.geometry),
        "\n".join(f"static float {name}[{macro}_BATCH * {max(size, 1)}];" for name, size in buffers(layers).items()),
        *activations(layers), *in_order(TEMPLATE, pieces(layers, options)), *pools(layers),
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
    rewire = {
        "random": (f"void {prefix}_rewire(float zeta, uint32_t seed);",),
        "gradient": (f"float {prefix}_rewire(float zeta, const float *inputs, {target}, size_t batch);",),
    }.get(rewiring(layers, options), ())
    saved = (
        f"int {prefix}_{name}(const {prefix}_storage *storage);" for name in ("save", "load") if options.checkpoint
    )
    return (step, f"void {prefix}_predict(const float *input, float *output);", *rewire, *saved)


def rewiring(layers: Sequence[Trained], options: Training) -> str:
    """Say by what connections grow; "" where there are none to grow."""
    return options.grow if any(layer.index and layer.is_trained for layer in layers) else ""


def trained_arrays(layers: Sequence[Trained]) -> dict[str, np.ndarray]:
    """Collect what training changes, by the names in C."""
    return {name: array for layer in layers if layer.is_trained for name, array in layer.arrays.items()}


def frozen_arrays(layers: Sequence[Trained]) -> dict[str, np.ndarray]:
    """Collect the constants of layers that are not trained, by the names in C."""
    return {name: array for layer in layers if not layer.is_trained for name, array in layer.arrays.items()}


def velocities(layers: Sequence[Trained]) -> dict[str, np.ndarray]:
    """Collect the arrays that have a velocity: weights that are trained."""
    trained = (
        (x, f"{x.label}_{key}") for x in layers if x.is_trained for key in ("values", "bias") if key in x.numbers
    )
    return {name: np.zeros(layer.arrays[name].size, np.float32) for layer, name in trained}


def _struct(name: str, arrays: dict[str, np.ndarray]) -> str:
    fields = "\n".join(f"    {c_type(array)} {label}[{array.size}];" for label, array in arrays.items())
    return f"typedef struct {{\n{fields}\n}} {name}_type;\nextern {name}_type {name};"


def _parameter(loss: str) -> str:
    return "const int *labels" if loss == "cross_entropy" else "const float *targets"


def _lines(statements: Sequence[str]) -> str:
    fill = functools.partial(textwrap.fill, width=120, initial_indent=" " * 4, subsequent_indent=" " * 8)
    return "\n".join(map(fill, statements))
