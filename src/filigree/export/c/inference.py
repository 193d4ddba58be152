"""Write a model as a C program that predicts: `void m_predict(const float *input, float *output)`."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from filigree.convert import inference_context
from filigree.export.c.chain import chain
from filigree.export.c.kept import buffers, name_buffers
from filigree.export.c.layers import folded, is_known, steps
from filigree.export.c.recurrent import Last, Recurrent, declared_by_moment, functions_by_moment, moment
from filigree.export.c.rows import rows_kept
from filigree.export.c.source import (
    CLayer,
    CMemory,
    Names,
    Program,
    Trial,
    braces,
    header_file,
    in_order,
    largest,
    source_file,
)
from filigree.export.c.stages import KERNELS, Shape, Stage, stage_of
from filigree.ops.c_steps import Affine, Pool

_MAIN = """
#include <stdio.h>
#include "$name.h"

int main(void)
{
    static float x[${macro}_INPUTS], y[${macro}_OUTPUTS];
    while (fread(x, sizeof x, 1, stdin) == 1) {
        ${prefix}_predict(x, y);
        if (fwrite(y, sizeof y, 1, stdout) != 1) {
            return 1;
        }
    }
    return 0;
}
"""


def inference_program(model: nn.Module, example: Tensor | None, name: str, prefix: str) -> Program:
    """Write the files `name.c` and `name.h` of a model in eval mode."""
    with inference_context(model):
        links = chain(model, is_known, "which cannot be written as C", sums=True)
        plain = rows_kept([step for label, module in links for step in steps(module, label)])
    program = folded(plain)
    name_buffers(program)
    whole = shape = input_shape(program, example)
    by_moment = any(isinstance(step, Recurrent | Last) for step in program)
    if by_moment:
        shape = moment(plain, whole)
    stages = named_stages(program, shape)
    out = stages[-1].shape if stages else shape
    statements, sizes = calls(stages, shape)
    memory = largest([
        *(CMemory(buffer, size) for buffer, size in sizes.items()), *buffers(program),
        *(array for stage in stages for array in stage.memory),
    ])  # fmt: skip
    pieces = {piece for stage in stages for piece in stage.pieces}
    pieces |= {"copy"} if any(line.startswith("copy(") for line in statements) else set()
    predict = f"void {prefix}_predict(const float *input, float *output)"
    resets = [f"clear({array.name}, {array.size});" for array in memory if array.lasts]
    parts = [
        *in_order(KERNELS, pieces),
        *dict.fromkeys(text for stage in stages for text in stage.texts),
        *(constant.text for stage in stages for constant in stage.constants),
        *(array.text for array in memory),
        *(functions_by_moment(prefix, statements, resets) if by_moment else [braces(predict, statements)]),
    ]
    macro = prefix.upper()
    functions: tuple[str, ...] = (f"{predict};",)
    declared = (
        f"#define {macro}_INPUTS {math.prod(whole)}\n#define {macro}_OUTPUTS {math.prod(out)}\n\n"
        f"/* One sample {whole} to {out}, in C's order. The two must not overlap. Not reentrant. */\n{predict};"
    )
    if by_moment:
        declared = f"#define {macro}_MOMENTS {whole[0]}\n{declared}\n\n{declared_by_moment(prefix, shape)}"
        functions += (f"void {prefix}_step(const float *input, float *output);", f"void {prefix}_reset(void);")

    def trial(x: Tensor) -> Trial:
        like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), x)
        with inference_context(model):
            expected = model(x.to(like, copy=True)).reshape(len(x), -1).cpu()  # a model may write on its input
        main = string.Template(_MAIN).substitute(name=name, macro=macro, prefix=prefix)
        return Trial(main, x.float().numpy().tobytes(), expected.float().numpy(), f"{len(x)} samples")

    times = whole[0] if by_moment else 1
    layers = [CLayer(s.name, s.what, s.form, sum(c.bytes for c in s.constants), s.macs * times) for s in stages]
    source, header = source_file(name, parts), header_file(prefix, declared)
    data, ram = sum(layer.bytes for layer in layers), sum(array.bytes for array in memory)
    return Program(source, header, layers, data, ram, whole, trial, functions, math.prod(out))


def input_shape(program: Sequence[Any], example: Tensor | None) -> Shape:
    """Return the shape of one sample: the example's, else what a first linear layer reads."""
    if example is not None:
        return tuple(example.shape[1:])
    for step in program:
        if isinstance(step, Affine) and step.geometry is None:
            return (step.matrix.shape[1],)
        if isinstance(step, Affine | Pool):
            break
    raise ValueError("export: the shape of the input is not known. Give a batch of inputs: fg.export(model, path, x).")


def named_stages(
    program: Sequence[Any], shape: Shape, make: Callable[[Any, Shape, str], Stage] = stage_of
) -> list[Stage]:
    """Write each step on what the one before leaves; what it defines gets names of its own."""
    stages: list[Stage] = []
    names = Names()
    functions: dict[str, str] = {}  # text -> name
    for step in program:
        here = stages[-1].shape if stages else shape
        tried = ((label, make(step, here, label)) for label in names.labels(step.name))
        stage = next(stage for label, stage in tried if names.take(stage.names(label)))
        words = {}
        for word, (function, text) in stage.functions.items():
            if text not in functions:
                functions[text] = names.function(function)
            words[word] = functions[text]
        stages.append(stage.named(words))
    return stages


def calls(stages: Sequence[Stage], shape: Shape) -> tuple[list[str], dict[str, int]]:
    """Write the statements of the program; two buffers, whose sizes follow, are read and written by turns."""
    lines: list[str] = []
    sizes: dict[str, int] = {}
    moves = [i for i, stage in enumerate(stages) if not stage.in_place]
    at, here = "input", shape

    def other(size: int, last: bool) -> str:
        if last:
            return "output"
        buffer = "buffer_b" if at == "buffer_a" else "buffer_a"
        sizes[buffer] = max(sizes.get(buffer, 0), size)
        return buffer

    for i, stage in enumerate(stages):
        is_last = all(move <= i for move in moves)
        writes = stage.in_place and stage.call and not stage.only_reads
        if writes and at == "input":  # the caller's numbers stay as they are
            to = other(math.prod(here), is_last)
            lines.append(f"copy({at}, {to}, {math.prod(here)});")
            at = to
        if not stage.in_place:
            to = other(math.prod(stage.shape), is_last)
            lines += string.Template(stage.call).substitute(x=at, y=to).split("\n")
            at = to
        elif stage.call:
            lines.append(string.Template(stage.call).substitute(y=at))
        here = stage.shape
    if at == "input":
        lines.append(f"copy(input, output, {math.prod(here)});")
    return lines, sizes
