"""Write the statements of a C program that trains: its layers forward and backward, what they call, its memory."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any

from filigree.export.c.source import literal, piece
from filigree.export.c.stages import KERNELS, elementwise_text
from filigree.export.c.training_layers import Trained
from filigree.export.c.training_options import Training

TEMPLATE = "training.c.in"
WEIGHTS = {"float": "float", "int8": "int8_t"}
SLOPES = {  # of each activation, by its output v
    "relu": "v > 0.0f ? 1.0f : 0.0f", "leaky_relu": "v > 0.0f ? 1.0f : slope", "hyperbolic_tangent": "1.0f - v * v",
    "sigmoid": "v * (1.0f - v)", "clamp": "v > low && v < high ? 1.0f : 0.0f",
}  # fmt: skip
_COUNTED = {  # of a window of average pooling: the same as where the average is taken
    "average": "i_in < g->height && j_in < g->width",
    "padded average": "i_in + g->top < g->height + 2 * g->top && j_in + g->left < g->width + 2 * g->left",
}


def buffers(layers: Sequence[Trained]) -> dict[str, int]:
    """Size the static memory of a sample by its names in C: what layers make, and gradients of that.

    Gradients are in two buffers by turns, from the last layer to the first that is trained; what the layers before that
    make is in two others, since only the next layer reads it.
    """
    sizes: dict[str, int] = {}
    first = first_trained(layers)
    deltas = [(f"delta_{turn % 2}", layer.outputs) for turn, layer in enumerate(reversed(layers[first:]))]
    for name, size in [*zip(outputs(layers), (layer.outputs for layer in layers), strict=True), *deltas]:
        sizes[name] = max(size, sizes.get(name, 0))
    return sizes


def outputs(layers: Sequence[Trained]) -> list[str]:
    """Name the memory of what each layer makes."""
    first = first_trained(layers)
    return [f"{x.label}_outputs" if i >= first else f"passing_{i % 2}" for i, x in enumerate(layers)]


def first_trained(layers: Sequence[Trained]) -> int:
    """Return the number of the first layer that has weights to train: gradients need to go no further."""
    return next(number for number, layer in enumerate(layers) if layer.is_trained)


def activations(layers: Sequence[Trained]) -> list[str]:
    """Write the functions of each kind of activation: itself, and its slope where a gradient goes through one."""
    texts = []
    passed = {layer.activation.function for layer in layers[first_trained(layers) :] if layer.activation}
    for activation in {x.activation.function: x.activation for x in layers if x.activation}.values():
        texts.append(string.Template(elementwise_text(activation)).substitute(function=activation.function))
        if activation.function in passed:
            parameters = "".join(f", float {name}" for name, _ in activation.numbers)
            words = {"function": f"{activation.function}_slope", "parameters": parameters}
            texts.append(piece(TEMPLATE, "slope", value=SLOPES[activation.function], **words))
    return texts


def pieces(layers: Sequence[Trained], options: Training) -> set[str]:
    """Name the functions that the program needs."""
    first = first_trained(layers)
    trained = [layer for layer in layers[first:] if layer.numbers]
    passed = layers[first + 1 :]  # what a gradient goes back through
    names = {f"learn {WEIGHTS[options.weights]}", options.loss} | {layer.kind for layer in layers if layer.numbers}
    names |= {f"{layer.kind} update" for layer in trained}
    names |= {f"{layer.kind} backward" for layer in passed if layer.numbers}
    names |= {"is_still"} if any(layer.kind != "convolution" for layer in trained) else set()
    names |= {"clear"} if passed else set()
    has_bias = any("bias" in layer.numbers for layer in trained)
    names |= {"update_bias"} if has_bias else set()
    names |= {"update"} if has_bias or options.weights == "float" else set()
    kept = {f"keep_{selection(layer, options)}" for layer in trained} - {"keep_"}
    names |= {"magnitude", "keep_largest", *kept} if kept else set()
    if any(layer.index for layer in trained):
        names |= {"magnitude", "remove", "rewire by gradient" if options.grow == "gradient" else "rewire at random"}
    names |= {"random"} if options.weights == "int8" or "rewire at random" in names else set()
    return names


def selection(layer: Trained, options: Training) -> str:
    """Name how a part of the gradients of what a layer makes is chosen: "largest", "share", or "" where all count."""
    if layer.top:
        return "largest"
    return "share" if options.adaptive and layer.kind in ("dense", "sparse") else ""


def pools(layers: Sequence[Trained]) -> list[str]:
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


def forward(layers: Sequence[Trained], prefix: str) -> list[str]:
    """Write the statements that compute what each layer makes, from `x` on."""
    lines, x = [], "x"
    for layer, y in zip(layers, outputs(layers), strict=True):
        if layer.numbers:
            bias = array(layer, "bias", prefix) if "bias" in layer.numbers else "NULL"
            read = f"{array(layer, 'values', prefix)}, {_matrix(layer, prefix)}{bias}, {_sides(layer)}"
            lines.append(f"{layer.kind}_forward({read}, {x}, {y});")
        else:
            one = f"&{layer.label}_geometry, {x} + n * {layer.inputs}, {y} + n * {layer.outputs}"
            lines += ["for (size_t n = 0; n < batch; ++n) {", f"    {_pool_name(layer.kind)}({one});", "}"]
        if layer.activation:
            lines.append(f"{layer.activation.function}({y}, batch * {layer.outputs}{_numbers(layer.activation)});")
        x = y
    return lines


def backward(layers: Sequence[Trained], prefix: str, options: Training) -> list[str]:
    """Write the statements that take a step, from the last layer to the first that is trained."""
    lines, names, first = [], outputs(layers), first_trained(layers)
    for turn, number in enumerate(range(len(layers) - 1, first - 1, -1)):
        layer = layers[number]
        x = names[number - 1] if number else "inputs"
        dy, dx = f"delta_{turn % 2}", f"delta_{1 - turn % 2}"
        if layer.activation:
            size = f"batch * {layer.outputs}{_numbers(layer.activation)}"
            lines.append(f"{layer.activation.function}_slope({names[number]}, {dy}, {size});")
        if not layer.numbers:
            read = f"{x}, " if layer.kind == "max" else ""
            lines.append(f"{_pool_name(layer.kind)}_backward(&{layer.label}_geometry, batch, {read}{dy}, {dx});")
            continue
        if kept := selection(layer, options):
            last = str(layer.top) if kept == "largest" else array(layer, "error", prefix)
            lines.append(f"keep_{kept}({dy}, {layer.outputs}, batch, {last});")
        if number > first:
            read = f"{array(layer, 'values', prefix)}, {_matrix(layer, prefix)}{_sides(layer)}"
            lines.append(f"{layer.kind}_backward({read}, {dy}, {dx});")
        lines += _update(layer, prefix, options, x, dy)
    return lines


def _update(layer: Trained, prefix: str, options: Training, x: str, dy: str) -> list[str]:
    """Write the statements that change a layer's weights; `zeta` above 0 rewires in place of a step."""
    velocity = options.momentum > 0
    held, matrix = held_by(layer, "values", prefix, velocity), _matrix(layer, prefix)
    steps = [f"{layer.kind}_update({held}, {matrix}{_sides(layer)}, {x}, {dy}, learning_rate);"]
    if "unit" in layer.numbers:
        size = layer.numbers["values"].size
        steps.append(f"fit({array(layer, 'values', prefix)}, {size}, {array(layer, 'unit', prefix)});")
    if "bias" in layer.numbers:
        bias, area = held_by(layer, "bias", prefix, velocity), math.prod(layer.shape[1:])
        steps.append(f"update_bias({bias}, {layer.shape[0]}, {area}, batch, {dy}, learning_rate);")
    if options.grow == "random":
        return steps
    lines = ["if (zeta < 0.0f) {", *(f"    {step}" for step in steps)]
    if layer.index:
        lines += [
            "} else {",
            f"    rewire({held}, {_index(layer, prefix)}{layer.outputs}, {layer.inputs}, zeta, batch, {x}, {dy});",
        ]
    return [*lines, "}"]


def rewire_at_random(layers: Sequence[Trained], prefix: str, options: Training) -> list[str]:
    """Write the statements that rewire each sparse layer."""
    held = ((held_by(x, "values", prefix, options.momentum > 0), x) for x in layers if x.index and x.is_trained)
    return [f"rewire({numbers}, {_index(x, prefix)}{x.outputs}, {x.inputs}, zeta, &random);" for numbers, x in held]


def array(layer: Trained, key: str, prefix: str) -> str:
    """Name one of a layer's arrays in C: a constant where it is frozen."""
    return f"{prefix}_weights.{layer.label}_{key}" if layer.is_trained else f"{layer.label}_{key}"


def held_by(layer: Trained, key: str, prefix: str, velocity: bool) -> str:
    """Write the arguments for numbers that are trained, and for their velocity."""
    return f"{array(layer, key, prefix)}, " + (f"{prefix}_velocity.{layer.label}_{key}" if velocity else "NULL")


def _sides(layer: Trained) -> str:
    """Write the arguments that say what a layer's matrix is, and the batch."""
    if layer.geometry:
        return f"&{layer.label}_geometry, {layer.numbers['values'].shape[1]}, batch"
    return f"{layer.outputs}, {layer.inputs}, batch"


def _matrix(layer: Trained, prefix: str) -> str:
    """Write the arguments that say in which unit the weights are, and where: of a float it is 1."""
    unit = f"{array(layer, 'unit', prefix)}[0]" if "unit" in layer.numbers else "1.0f"
    return f"{unit}, {_index(layer, prefix)}"


def _index(layer: Trained, prefix: str) -> str:
    return "".join(f"{array(layer, key, prefix)}, " for key in layer.index)


def _numbers(activation: Any) -> str:
    return "".join(f", {literal(float(number))}" for _, number in activation.numbers)
