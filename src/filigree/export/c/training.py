"""Write a small network as a C program that trains: forward, backward, SGD with momentum, rewiring, in static memory.

`float m_train_step(inputs, labels, batch, learning_rate)` takes the step that `torch.optim.SGD` would take, and
`void m_rewire(zeta, seed)` is a rewiring as of `fg.Evolution`: SET's rule, weights of new connections 0.
"""

from __future__ import annotations

from torch import Tensor, nn

from filigree.computed_weights import copied
from filigree.export.c.source import CLayer, Program
from filigree.export.c.training_calls import buffers, selection
from filigree.export.c.training_layers import Trained, trained_layers
from filigree.export.c.training_options import Training
from filigree.export.c.training_text import (
    declarations,
    frozen_arrays,
    header_text,
    source_text,
    trained_arrays,
    velocities,
)
from filigree.export.c.training_trial import training_trial


def training_program(model: nn.Module, example: Tensor | None, name: str, prefix: str, options: Training) -> Program:
    """Write the files `name.c` and `name.h` of a chain of layers in training mode.

    Raises:
        ValueError: what is no chain of linear or sparse layers, convolutions, pooling and activations, or trains
            otherwise in torch (dropout, most sparsified gradients): the module is named.
    """
    shape, out, layers = trained_layers(copied(model).train(), example)
    if options.loss == "cross_entropy" and len(out) != 1:
        expected = "export: cross_entropy needs (batch, classes). The model makes"
        raise ValueError(f"{expected} {out} a sample: flatten it, or give loss='mse'.")
    for layer in layers:
        layer.prepare(options.weights == "int8", layer.is_trained and selection(layer, options) == "share")
    held, frozen = (
        sum(array.nbytes for array in arrays.values()) for arrays in (trained_arrays(layers), frozen_arrays(layers))
    )
    stored = held + frozen + sum(layer.geometry.bytes for layer in layers if layer.geometry)
    memory = held + 4 * options.batch * sum(buffers(layers).values())
    if options.momentum:
        memory += sum(array.nbytes for array in velocities(layers).values())
    report = [
        CLayer(x.name, x.what, _form(x),
               sum(array.nbytes for array in x.arrays.values()), x.macs)
        for x in layers
    ]  # fmt: skip
    source, header = source_text(layers, name, prefix, options), header_text(layers, prefix, options)
    words = {"name": name, "macro": prefix.upper(), "prefix": prefix}
    return Program(
        source, header, report, stored, memory, shape, lambda x: training_trial(model, layers, x, options, words),
        declarations(layers, prefix, options), layers[-1].outputs,
    )  # fmt: skip


def _form(layer: Trained) -> str:
    kind = "sparse" if layer.index else "dense"
    stored = ", int8" if "unit" in layer.numbers else ""
    return f"{'frozen' if layer.frozen else 'trained'}, {kind}{stored}" if layer.numbers else ""
