"""Write an MLP as a C program that trains: forward, backward, SGD with momentum, and rewiring, in static memory.

`float m_train_step(inputs, labels, batch, learning_rate)` takes the step that `torch.optim.SGD` would take, and
`void m_rewire(zeta, seed)` is a rewiring as of `fg.Evolution`: SET's rule, weights of new connections 0.
"""

from __future__ import annotations

import itertools
import string
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.computed_weights import copied
from filigree.config import Config, config
from filigree.export.answers import answers
from filigree.export.c.chain import chain
from filigree.export.c.layers import steps
from filigree.export.c.source import CLayer, Program, Trial, free_name, identifier, literal, smallest_unsigned
from filigree.export.c.training_text import Trained, declarations, delta_sizes, header_text, source_text, velocities
from filigree.ops.c_steps import Elementwise, TrainedLinear, refuse, trained_linear

_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh)

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


@config
class Training(Config):
    """An exported program trains as `torch.optim.SGD` with these options.

    Args:
        loss: "cross_entropy" of labels, or "mse" of targets: means, as `nn.CrossEntropyLoss` and `nn.MSELoss`.
        batch: the largest batch; the macro `M_BATCH` of the program.
        momentum, weight_decay, nesterov: of SGD. Without momentum no memory is set aside for it.
    """

    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    batch: Annotated[int, pydantic.Field(ge=1)] = 32
    momentum: Annotated[float, pydantic.Field(ge=0)] = 0.9
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("Training: nesterov needs a momentum above 0. Got 0.")

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.SGD:
        """Return the same optimizer of torch."""
        return torch.optim.SGD(
            model.parameters(), rate, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )  # fmt: skip


def training_program(model: nn.Module, name: str, prefix: str, options: Training) -> Program:
    """Write the files `name.c` and `name.h` of an MLP in training mode.

    Raises:
        ValueError: what is no chain of linear or sparse layers and activations, or trains otherwise in torch (dropout,
            frozen weights, sparsified gradients): the module is named.
    """
    layers = _trained(copied(model).train())
    numbers = {
        "MOMENTUM": options.momentum, "WEIGHT_DECAY": options.weight_decay, "NESTEROV": int(options.nesterov),
    }  # fmt: skip
    stored = sum(array.nbytes for layer in layers for array in layer.arrays.values())
    memory = stored + 4 * options.batch * sum((*(layer.rows for layer in layers), *delta_sizes(layers)))
    if options.momentum:
        memory += sum(array.nbytes for array in velocities(layers).values())
    report = [
        CLayer(x.name, f"linear {x.width} -> {x.rows}", "trained, sparse" if x.index else "trained, dense",
              sum(array.nbytes for array in x.arrays.values()), 3 * x.numbers["values"].size)
        for x in layers
    ]  # fmt: skip
    source = source_text(layers, name, prefix, options.loss, numbers)
    header = header_text(layers, prefix, options.batch, options.loss, options.momentum > 0)
    words = {"name": name, "macro": prefix.upper(), "prefix": prefix}
    return Program(
        source, header, report, stored, memory, (layers[0].width,), lambda x: _trial(model, x, options, words),
        declarations(layers, prefix, options.loss), layers[-1].rows,
    )  # fmt: skip


def _is_known(module: nn.Module) -> bool:
    nothing = isinstance(module, nn.Dropout) and not module.p
    plain = type(module) in (nn.Linear, *_ACTIVATIONS, nn.Identity, nn.Flatten)
    return nothing or plain or answers(module, "c_training_form", eval_only=False)


def _training_steps(module: nn.Module, name: str) -> list[Any]:
    layer: Any = module
    if answers(module, "c_training_form", eval_only=False):
        return layer.c_training_form(name)
    if type(module) is nn.Linear:
        return [trained_linear(module, name)]
    return steps(module, name) if type(module) in _ACTIVATIONS else []


def _trained(model: nn.Module) -> list[Trained]:
    layers: list[Trained] = []
    seen: set[nn.Module] = set()
    labels: set[str] = set()
    for name, module in chain(model, _is_known, "which a program that trains cannot hold"):
        for step in _training_steps(module, name):
            if isinstance(step, TrainedLinear):
                if module in seen:
                    raise refuse(name, "is used twice, which a program that trains cannot do")
                seen.add(module)
                layers.append(_trained_layer(step, module, free_name(identifier(name, "layer"), labels)))
            else:
                _activate(layers[-1] if layers else None, step, name)
    if not layers:
        raise ValueError("export: a program that trains needs a linear layer. The model has none.")
    for before, after in itertools.pairwise(layers):
        if before.rows != after.width:
            raise refuse(after.name, f"reads {after.width} numbers a sample. {before.name!r} makes {before.rows}")
    for key in ("columns", "starts"):  # one type for all layers, so that they share their functions
        sparse = [layer for layer in layers if layer.index]
        if sparse:
            kind = max((layer.index[key].dtype for layer in sparse), key=lambda dtype: dtype.itemsize)
            for layer in sparse:
                layer.index[key] = layer.index[key].astype(kind)
    return layers


def _trained_layer(step: TrainedLinear, module: nn.Module, label: str) -> Trained:
    name, rows, width = step.name, step.rows, step.columns
    for parameter in module.parameters():
        if not parameter.requires_grad:
            raise refuse(name, "has frozen weights, which a program that trains cannot hold")
        if not bool(parameter.isfinite().all()):
            raise refuse(name, "has weights that are not finite")
    index: dict[str, np.ndarray] = {}
    if step.indices is not None and step.indptr is not None:
        if rows * width >= 2**32:
            raise refuse(name, f"has {rows * width} weights, of which a program that trains rewires fewer than 2^32")
        # rewiring may write any column, not only those in use now
        columns = step.indices.astype(np.min_scalar_type(width - 1))
        index = {"columns": columns, "starts": smallest_unsigned(step.indptr)}
    numbers = {"values": step.values} | ({} if step.bias is None else {"bias": step.bias})
    return Trained(name, label, rows, width, numbers, index)


def _activate(layer: Trained | None, step: Elementwise, name: str) -> None:
    if layer is None or layer.activation is not None:
        raise refuse(name, "must follow a linear layer directly")
    if step.function == "leaky_relu" and dict(step.numbers)["slope"] < 0:
        raise refuse(name, "must have a slope of at least 0: its input is found from its output")
    layer.activation = step


def _trial(model: nn.Module, x: Tensor, options: Training, words: dict[str, str]) -> Trial:
    """Take some steps on the inputs, and compute the outputs after them."""
    duplicate = copied(model).train()
    like = next(duplicate.parameters())
    x, steps = x.flatten(1).to(like), 4
    batch = max(1, min(options.batch, len(x) // steps))
    rate = float(np.float32(0.1 / (1 + float(x.square().sum(1).mean()))))  # small enough for inputs of any size
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
