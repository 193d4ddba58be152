"""Write a small network as a C program that trains: forward, backward, SGD with momentum, rewiring, in static memory.

`float m_train_step(inputs, labels, batch, learning_rate)` takes the step that `torch.optim.SGD` would take, and
`void m_rewire(zeta, seed)` is a rewiring as of `fg.Evolution`: SET's rule, weights of new connections 0.
"""

from __future__ import annotations

import string

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.computed_weights import copied
from filigree.export.c.source import CLayer, Program, Trial, literal
from filigree.export.c.training_layers import trained_layers
from filigree.export.c.training_options import Training
from filigree.export.c.training_text import declarations, delta_sizes, header_text, source_text, velocities

_MAIN = """
#include <stdio.h>
#include "$name.h"

int main(void)
{
    static float x[${macro}_BATCH * ${macro}_INPUTS], y[${macro}_OUTPUTS];
    static $kind targets[$targets];
    for (int step = 0; step < $steps; ++step) {
        if (fread(x, sizeof(float) * ${macro}_INPUTS, $batch, stdin) != $batch
            || fread(targets, sizeof targets, 1, stdin) != 1) {
            return 1;
        }
        y[0] = ${prefix}_train_step(x, targets, $batch, $rate);
        fwrite(y, sizeof(float), 1, stdout);
    }
    while (fread(x, sizeof(float) * ${macro}_INPUTS, 1, stdin) == 1) {
        ${prefix}_predict(x, y);
        fwrite(y, sizeof y, 1, stdout);
    }
    return 0;
}
"""


def training_program(model: nn.Module, example: Tensor | None, name: str, prefix: str, options: Training) -> Program:
    """Write the files `name.c` and `name.h` of a chain of layers in training mode.

    Raises:
        ValueError: what is no chain of linear or sparse layers, convolutions, pooling and activations, or trains
            otherwise in torch (dropout, frozen weights, sparsified gradients): the module is named.
    """
    shape, layers = trained_layers(copied(model).train(), example)
    stored = sum(array.nbytes for layer in layers for array in layer.arrays.values())
    constants = sum(layer.geometry.bytes for layer in layers if layer.geometry)
    memory = stored + 4 * options.batch * sum((*(layer.outputs for layer in layers), *delta_sizes(layers)))
    if options.momentum:
        memory += sum(array.nbytes for array in velocities(layers).values())
    report = [
        CLayer(x.name, x.what, f"trained, {'sparse' if x.index else 'dense'}" if x.numbers else "",
               sum(array.nbytes for array in x.arrays.values()), x.macs)
        for x in layers
    ]  # fmt: skip
    source, header = source_text(layers, name, prefix, options), header_text(layers, prefix, options)
    words = {"name": name, "macro": prefix.upper(), "prefix": prefix}
    return Program(
        source, header, report, stored + constants, memory, shape,
        lambda x: _trial(model, x, options, words), declarations(layers, prefix, options), layers[-1].outputs,
    )  # fmt: skip


def _trial(model: nn.Module, x: Tensor, options: Training, words: dict[str, str]) -> Trial:
    """Take some steps on the inputs, and compute the outputs after them."""
    duplicate = copied(model).train()
    like = next(duplicate.parameters())
    x, steps = x.to(like), 4
    batch = max(1, min(options.batch, len(x) // steps))
    power = float(x.square().flatten(1).sum(1).mean())
    rate = float(np.float32(0.1 / (1 + power)))  # small enough for inputs of any size
    optimizer = options.optimizer(duplicate, rate)
    generator = torch.Generator().manual_seed(0)
    data, losses = b"", []
    for step in range(steps):
        part = x[step * batch : (step + 1) * batch]
        y = duplicate(part)
        if options.loss == "cross_entropy":
            targets = torch.randint(y.shape[1], (batch,), generator=generator)
            data += part.cpu().float().numpy().tobytes() + targets.int().numpy().tobytes()
            loss = F.cross_entropy(y, targets.to(y.device))
        else:
            wanted = torch.randn(y.shape, generator=generator)
            data += part.cpu().float().numpy().tobytes() + wanted.numpy().tobytes()
            loss = F.mse_loss(y, wanted.to(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        expected = torch.cat([torch.tensor(losses), duplicate(x).flatten().cpu().float()])
    labelled = options.loss == "cross_entropy"
    main = string.Template(_MAIN).substitute(
        words, kind="int" if labelled else "float", steps=steps, batch=batch, rate=literal(rate),
        targets=batch if labelled else f"{batch} * {words['macro']}_OUTPUTS",
    )  # fmt: skip
    return Trial(main, data + x.cpu().float().numpy().tobytes(), expected.numpy(), f"{steps} steps of {batch} samples")
