"""An MLP as a C program that trains: forward, backward, SGD with momentum, and rewiring, in static memory.

`float m_train_step(inputs, labels, batch, learning_rate)` takes the step that `torch.optim.SGD` would take, and
`void m_rewire(zeta, seed)` is a rewiring as of `fg.Evolution`: SET's rule, weights of new connections 0.
"""

from __future__ import annotations

import copy
import itertools
import string
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree import nn as layers
from filigree.config import Config, config
from filigree.export.c.chain import chain
from filigree.export.c.layers import lower
from filigree.ops.c_steps import refuse
from filigree.export.c.source import Layer, Program, Trial, free_name, identifier, literal, smallest_unsigned
from filigree.export.c.training_text import Trained, delta_sizes, header_text, source_text, velocities

_LINEAR = (nn.Linear, layers.FeatureMajorLinear, layers.SparseLinear, layers.MaskedLinear)
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
    """How an exported program trains: as `torch.optim.SGD` with these options.

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
        """Torch's."""
        return torch.optim.SGD(
            model.parameters(), rate, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )  # fmt: skip


def training_program(model: nn.Module, name: str, prefix: str, options: Training) -> Program:
    """The files `name.c` and `name.h` of an MLP in training mode.

    Raises:
        ValueError: what is no chain of linear or sparse layers and activations, or trains otherwise in torch (dropout,
            frozen weights, sparsified gradients): the module is named.
    """
    found = _trained(copy.deepcopy(model).train())
    numbers = {
        "MOMENTUM": options.momentum, "WEIGHT_DECAY": options.weight_decay, "NESTEROV": int(options.nesterov),
    }  # fmt: skip
    stored = sum(array.nbytes for layer in found for array in layer.arrays.values())
    memory = stored + 4 * options.batch * sum((*(layer.rows for layer in found), *delta_sizes(found)))
    if options.momentum:
        memory += sum(array.nbytes for array in velocities(found).values())
    report = [
        Layer(x.name, f"linear {x.width} -> {x.rows}", "trained, sparse" if x.index else "trained, dense",
              sum(array.nbytes for array in x.arrays.values()))
        for x in found
    ]  # fmt: skip
    source = source_text(found, name, prefix, options.loss, numbers)
    header = header_text(found, prefix, options.batch, options.loss, options.momentum > 0)
    words = {"name": name, "macro": prefix.upper(), "prefix": prefix}
    return Program(
        source, header, report, stored, memory, (found[0].width,), lambda x: _trial(model, x, options, words)
    )  # fmt: skip


def _is_known(module: nn.Module) -> bool:
    nothing = isinstance(module, nn.Dropout) and not module.p
    return nothing or type(module) in (*_LINEAR, *_ACTIVATIONS, nn.Identity, nn.Flatten)


def _trained(model: nn.Module) -> list[Trained]:
    found: list[Trained] = []
    seen: set[nn.Module] = set()
    labels: set[str] = set()
    for name, module in chain(model, _is_known, "which a program that trains cannot hold"):
        if type(module) in _LINEAR:
            if module in seen:
                raise refuse(name, "is used twice, which a program that trains cannot do")
            seen.add(module)
            found.append(_trained_layer(name, module, free_name(identifier(name, "layer"), labels)))
        elif type(module) in _ACTIVATIONS:
            (op,) = lower(module, name)
            _activate(found[-1] if found else None, op, name)
        if getattr(module, "relu", False) is True:
            _activate(found[-1], lower(nn.ReLU(), name)[0], name)
    if not found:
        raise ValueError("export: a program that trains needs a linear layer. The model has none.")
    for before, after in itertools.pairwise(found):
        if before.rows != after.width:
            raise refuse(after.name, f"reads {after.width} numbers a sample. {before.name!r} makes {before.rows}")
    for key in ("columns", "starts"):  # one type for all layers, so that they share their functions
        sparse = [layer for layer in found if layer.index]
        if sparse:
            kind = max((layer.index[key].dtype for layer in sparse), key=lambda dtype: dtype.itemsize)
            for layer in sparse:
                layer.index[key] = layer.index[key].astype(kind)
    return found


def _trained_layer(name: str, module: Any, label: str) -> Trained:
    for parameter in module.parameters():
        if not parameter.requires_grad:
            raise refuse(name, "has frozen weights, which a program that trains cannot hold")
        if not bool(parameter.isfinite().all()):
            raise refuse(name, "has weights that are not finite")
    layer: Any = module.sparse() if isinstance(module, layers.MaskedLinear) else module
    rows, width = layer.out_features, layer.in_features
    index: dict[str, np.ndarray] = {}
    if isinstance(layer, layers.SparseLinear):
        if rows * width >= 2**32:
            raise refuse(name, f"has {rows * width} places; a program that trains can rewire fewer than 2^32")
        columns, starts = (part.cpu().numpy() for part in (layer.indices, layer.indptr))
        # rewiring may write any column, not only those in use now
        index = {"columns": columns.astype(np.min_scalar_type(width - 1)), "starts": smallest_unsigned(starts)}
    numbers: dict[str, Tensor | None] = {"values": layer.values if index else layer.weight, "bias": layer.bias}
    plain = {key: t.detach().cpu().float().numpy() for key, t in numbers.items() if t is not None}
    return Trained(name, label, rows, width, plain, index)


def _activate(layer: Trained | None, op: Any, name: str) -> None:
    if layer is None or layer.activation is not None:
        raise refuse(name, "must follow a linear layer directly")
    if op.function == "leaky_relu" and dict(op.numbers)["slope"] < 0:
        raise refuse(name, "must have a slope of at least 0: its input is found from its output")
    layer.activation = op


def _trial(model: nn.Module, x: Tensor, options: Training, words: dict[str, str]) -> Trial:
    """Some steps on the inputs, and the outputs after them."""
    duplicate = copy.deepcopy(model).train()
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
