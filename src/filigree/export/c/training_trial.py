"""How a program that trains is compared with torch: some steps, and what the network makes after them."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.computed_weights import copied
from filigree.export.c.source import Trial, literal
from filigree.export.c.training_calls import selection
from filigree.export.c.training_layers import Trained
from filigree.export.c.training_options import Training
from filigree.ops import selection as ops

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


def training_trial(
    model: nn.Module, layers: Sequence[Trained], x: Tensor, options: Training, words: dict[str, str]
) -> Trial:
    """Take some steps on the inputs, and compute the outputs after them."""
    duplicate = copied(model).train()
    for layer in layers:
        if "unit" in layer.numbers:
            _in_units(duplicate.get_submodule(layer.name), float(layer.numbers["unit"][0]))
    if options.adaptive:
        for layer in layers:
            if layer.is_trained and selection(layer, options) == "share":
                keep_share(duplicate.get_submodule(layer.name), *options.adaptive)
    like = next(duplicate.parameters())
    x, steps = x.to(like), 4
    batch = max(1, min(options.batch, len(x) // steps))
    power = float(x.square().flatten(1).sum(1).mean())
    # small enough for inputs of any size; steps that round at random are compared by their losses and gradients alone
    rate = float(np.float32(0.1 / (1 + power))) if options.weights == "float" else 0.0
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
    what = f"{steps} steps of {batch} samples{'' if rate else ' at a rate of 0'}"
    return Trial(main, data + x.cpu().float().numpy().tobytes(), expected.numpy(), what)


@torch.no_grad()
def _in_units(module: nn.Module, unit: float) -> None:
    """Round a layer's weights, but not its biases, to whole numbers of a unit."""
    for name, parameter in module.named_parameters(recurse=False):
        if name != "bias":
            parameter.copy_((parameter / unit).round() * unit)


def keep_share(module: nn.Module, least: float, most: float) -> None:
    """Have a linear layer of torch choose gradients of what it makes as `Training(adaptive=(least, most))` says."""
    largest = 0.0

    def select(y: Tensor, gradient: Tensor) -> Tensor:
        nonlocal largest
        delta = gradient * (y > 0) if getattr(module, "relu", False) is True else gradient.clone()
        for row in delta:
            error = float(row.abs().sum())
            largest = max(error, largest)
            count = int((least + (most - least) * error / largest) * len(row) + 0.5) if error else 0
            row.copy_(ops.dense(ops.top(row[None], count))[0] if count else torch.zeros_like(row))
        return delta

    def watch(module: nn.Module, inputs: Any, y: Tensor) -> None:
        if y.requires_grad:
            y.register_hook(functools.partial(select, y.detach()))

    module.register_forward_hook(watch)
