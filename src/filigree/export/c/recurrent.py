"""LSTM and GRU as steps of a C program, which keep their state from one moment to the next."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from filigree.export.c.kept import Keep
from filigree.export.c.source import CMemory, braces
from filigree.export.c.stages import Shape, Stage, check_finite, stage_of
from filigree.nn.rnn import LoopedRNN, is_lstm
from filigree.nn.structured.structured_rnn import StructuredRNN
from filigree.ops.c_steps import (
    Affine,
    Elementwise,
    NoisyExpectation,
    ParametricReLU,
    ScaleShift,
    Softmax,
    csr,
    floats,
    refuse,
)


@dataclass(frozen=True)
class Recurrent:
    """It is a layer of recurrent units: weights of inputs and of states `(gates * units, ...)`, and biases of both.

    `kind` is "lstm" or "gru"; the gates are in torch's order.
    """

    name: str
    kind: str
    weight: np.ndarray
    state_weight: np.ndarray
    bias: np.ndarray
    state_bias: np.ndarray

    @property
    def units(self) -> int:
        return self.state_weight.shape[1]


@dataclass(frozen=True)
class Last:
    """It takes what the layers before make at the last moment."""

    name: str


class LastMoment(nn.Module):
    """It stands for `y[:, -1]` in a model's forward."""

    def forward(self, y: Tensor) -> Tensor:
        return y[:, -1]


def recurrent(module: Any, name: str) -> list[Any]:
    """Describe an `nn.LSTM` or `nn.GRU`, or one with other layers as weights. `ValueError`: another kind of it."""
    if isinstance(module, LoopedRNN) and module.has_gates:
        raise refuse(name, f"is a {type(module).__name__}, whose gates cannot be written as C")
    if module.bidirectional or not module.batch_first or getattr(module, "proj_size", 0):
        raise refuse(name, "must be of one direction, with batch_first=True and without a projection")
    steps = []
    for number in range(module.num_layers):
        weights, biases = zip(*(_product(module, part, f"_l{number}", name) for part in ("ih", "hh")), strict=True)
        label = name if module.num_layers == 1 else f"{name}.{number}"
        steps.append(Recurrent(label, "lstm" if is_lstm(module) else "gru", *weights, *biases))
    return steps


def _product(module: Any, part: str, suffix: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the weight and the bias of the product with inputs ("ih") or states ("hh")."""
    own = getattr(module, f"bias_{part}{suffix}") if module.bias else None
    if isinstance(module, StructuredRNN):
        product: Any = module.products[part + suffix]
        dense = product if isinstance(product, nn.Linear) else product.dense()
        if not isinstance(dense, nn.Linear):
            raise refuse(f"{name}.products.{part}{suffix}", "is more than a product with a matrix")
        weight, biases = dense.weight, [dense.bias, own]
    else:
        weight, biases = getattr(module, f"weight_{part}{suffix}"), [own]
    bias = sum((floats(each) for each in biases if each is not None), np.zeros(len(weight), np.float32))
    return floats(weight), bias


@stage_of.register
def _(step: Recurrent, shape: Shape, label: str) -> Stage:
    if shape != (step.weight.shape[1],):
        raise refuse(step.name, f"reads (time, {step.weight.shape[1]}) a sample. Got {shape} at each moment")
    check_finite(step.name, step.weight, step.state_weight, step.bias, step.state_bias)
    state, behind = f"{label}_state", f"gates + {len(step.bias)}"
    calls, stages = [], {}
    for key, weight, bias, x, y in (
        ("from_input", step.weight, step.bias, "$x", "gates"),
        ("from_state", step.state_weight, step.state_bias, state, behind),
    ):
        linear = Affine(step.name, csr(weight), None, bias if bias.any() else None)
        stages[key] = stage_of(linear, (weight.shape[1],), f"{label}_{key}")
        calls.append(string.Template(stages[key].call).substitute(function=f"${key}", x=x, y=y))
    kept = step.units * (2 if step.kind == "lstm" else 1)
    return Stage(
        step.name, f"{step.kind} {shape[0]} -> {step.units}", (step.units,),
        " and ".join(dict.fromkeys(stage.form for stage in stages.values())),
        "\n".join([*calls, f"{step.kind}({step.units}, gates, {state}, $y);"]),
        others={key: (stage.function, stage.text) for key, stage in stages.items()},
        pieces=("clear", "sigmoid_of", step.kind, *(piece for stage in stages.values() for piece in stage.pieces)),
        memory=(CMemory("gates", 2 * len(step.bias)), CMemory(state, kept, lasts=True)),
        constants=tuple(array for stage in stages.values() for array in stage.constants), in_place=False,
        macs=sum(stage.macs for stage in stages.values()),
    )  # fmt: skip


@stage_of.register
def _(step: Last, shape: Shape, label: str) -> Stage:
    return Stage(step.name, "last moment", shape)


def moment(program: Sequence[Any], whole: Shape) -> Shape:
    """Return the shape of a sample at one moment."""
    first = next((step for step in program if isinstance(step, Recurrent)), None)
    if first is None:
        last = next(step for step in program if isinstance(step, Last))
        raise refuse(last.name, "takes y[:, -1] of what no recurrent layer is in front of")
    if len(whole) != 2:
        raise refuse(first.name, f"reads (time, {first.weight.shape[1]}) a sample. Got {whole}")
    ends = [i for i, step in enumerate(program) if isinstance(step, Last)]
    if len(ends) != 1 or any(isinstance(step, Recurrent) for step in program[ends[0] :]):
        raise refuse(first.name, "must be followed by y[:, -1], what is there at the last moment, once")
    for step in program[: ends[0]]:
        if not _is_of_a_moment(step):
            raise refuse(
                step.name,
                "does not work on one moment at a time (a softmax may, with dim=-1): it must stand behind y[:, -1]",
            )
    kept = {step.kept for step in program[: ends[0]] if isinstance(step, Keep)}
    for step in program[ends[0] :]:
        if isinstance(step, Keep) and step.kept in kept:
            raise refuse(step.name, "reads behind y[:, -1] what there was at each moment")
    return whole[1:]


def _is_of_a_moment(step: Any) -> bool:
    """Tell whether a step on `(time, features)` does the same to each moment, on its own."""
    if isinstance(step, Affine):
        return step.geometry is None
    if isinstance(step, Softmax):
        return step.dim == -1
    if isinstance(step, ScaleShift | NoisyExpectation):
        numbers = step.scale if isinstance(step, ScaleShift) else step.p
        return len(numbers) == 1 or step.dim == -1
    if isinstance(step, ParametricReLU):
        return len(step.slope) == 1  # torch has one for each moment
    return isinstance(step, Elementwise | Keep | Recurrent)


def functions_by_moment(prefix: str, statements: list[str], resets: list[str], number: str = "float") -> list[str]:
    """Write the functions of a program that reads one moment after the other.

    Args:
        statements, resets: of a moment, and before the first one. number: the type of inputs and outputs in C.
    """
    macro = prefix.upper()
    size = f"{macro}_INPUTS / {macro}_MOMENTS"
    loop = [f"{prefix}_reset();", f"for (size_t i = 0; i < {macro}_MOMENTS; ++i) {{"]
    return [
        braces(f"void {prefix}_reset(void)", resets),
        braces(f"void {prefix}_step(const {number} *input, {number} *output)", statements),
        braces(
            f"void {prefix}_predict(const {number} *input, {number} *output)",
            [*loop, f"    {prefix}_step(input + i * ({size}), output);", "}"],
        ),
    ]


def declared_by_moment(prefix: str, shape: Shape, number: str = "float") -> str:
    return (
        f"/* One moment {shape}, after those before it: what there is to say by then. */\n"
        f"void {prefix}_step(const {number} *input, {number} *output);\n\n"
        f"/* What comes next is the first moment. */\nvoid {prefix}_reset(void);"
    )
