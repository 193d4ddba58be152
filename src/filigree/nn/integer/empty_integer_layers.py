"""Layers of integers in place of others: what can be replaced, by what, and the config that rebuilds them."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from filigree.config import config
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.integer.integer_conv2d import IntegerConv2d
from filigree.nn.integer.integer_layer import IntegerLayer, SampledActivation
from filigree.nn.integer.integer_linear import IntegerLinear
from filigree.nn.sparse.sparse_conv2d import conv_size
from filigree.summary import says


def has_integer_form(module: Any) -> bool:
    """Whether a layer of integers can stand in this module's place: torch's linear layer or convolution, or ours that
    says so."""
    return module.has_integer_form if says(module) else type(module) in (nn.Linear, nn.Conv2d)


def weight_matrix(layer: Any) -> Tensor:
    """The weight of a layer as `(out_features, in_features)`; zeros where a sparse one has no connection."""
    return layer.weight_matrix() if says(layer) else layer.weight.detach().flatten(1)


def integer_layer(layer: Any, counts: Tensor, scale: Tensor, input_scale: Tensor | None, bias: Tensor | None) -> Any:
    """The layer of integers that takes the place of `layer`."""
    if hasattr(layer, "kernel_size"):
        return IntegerConv2d(layer, counts, scale, input_scale, bias)
    return IntegerLinear(counts, scale, input_scale, bias, relu=getattr(layer, "relu", False))


@config
class EmptyIntegerLayers(Conversion):
    """Empty layers of integers, to be filled by `load_state_dict`: how `fg.load` rebuilds what was quantised.

    Args:
        bias, input_scale, activations: whether they have one.
    """

    bias: bool
    input_scale: bool = False
    activations: bool = False

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {}  # a shell for loading

    @classmethod
    def like(cls, layer: IntegerLayer) -> EmptyIntegerLayers:
        return cls(layer.bias is not None, layer.input_scale is not None, layer.activation is not None)

    def accepts(self, module: nn.Module) -> bool:
        return has_integer_form(module)

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        changes = []
        for name in names:
            layer: Any = model.get_submodule(name)
            if hasattr(layer, "kernel_size"):
                (rows, cols), inputs = conv_size(layer)[:2], layer.in_channels
            else:
                rows, cols, inputs = layer.out_features, layer.in_features, layer.in_features
            integers = integer_layer(
                layer, torch.zeros(rows, cols, dtype=torch.int32), torch.ones(1),
                torch.ones(inputs) if self.input_scale else None, torch.zeros(rows) if self.bias else None,
            )  # fmt: skip
            if self.activations:
                integers.activation = SampledActivation(1.0)
            replace_module(model, name, integers)
            changes.append(Change.of(name, layer, integers))
        return changes
