"""Layers of integers in place of others: what can be replaced, by what, and the config that rebuilds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from filigree.config import config
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.integer.integer_conv2d import IntegerConv2d
from filigree.nn.integer.integer_layer import IntegerLayer, SampledActivation
from filigree.nn.integer.integer_linear import IntegerLinear
from filigree.nn.sparse.channel_major_conv2d import ChannelMajorConv2d
from filigree.nn.sparse.feature_major_linear import FeatureMajorLinear
from filigree.nn.sparse.sparse_conv2d import SparseConv2d
from filigree.nn.sparse.sparse_linear import SparseLinear

_WEIGHTED = (nn.Linear, nn.Conv2d, FeatureMajorLinear, ChannelMajorConv2d, SparseLinear, SparseConv2d)


def is_weighted(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution, dense or sparse, that integers can stand for."""
    return type(module) in _WEIGHTED


def weight_matrix(layer: Any) -> Tensor:
    """The weight of such a layer as `(out_features, in_features)`; zeros where a sparse one has no connection."""
    if isinstance(layer, SparseLinear | SparseConv2d):
        dense = layer.dense()
        layer = dense[0] if isinstance(dense, nn.Sequential) else dense
    return layer.weight.detach().flatten(1)


def integer_layer(layer: Any, counts: Tensor, scale: Tensor, input_scale: Tensor | None, bias: Tensor | None) -> Any:
    """The layer of integers that takes the place of `layer`."""
    if isinstance(layer, nn.Conv2d | SparseConv2d):
        return IntegerConv2d(layer, counts, scale, input_scale, bias)
    return IntegerLinear(counts, scale, input_scale, bias, relu=getattr(layer, "relu", False))


def change_to(name: str, layer: Any, made: IntegerLayer, note: str) -> Change:
    before = sum(p.numel() for p in layer.parameters())
    after = made.nnz + (0 if made.bias is None else made.bias.numel())
    macs = int(weight_matrix(layer).count_nonzero()) if hasattr(layer, "nnz") else layer.weight.numel()
    return Change(name, type(layer).__name__, type(made).__name__, (before, after), (macs, made.nnz), note)


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
    def like(cls, made: IntegerLayer) -> EmptyIntegerLayers:
        return cls(made.bias is not None, made.input_scale is not None, made.activation is not None)

    def accepts(self, module: nn.Module) -> bool:
        return is_weighted(module)

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        changes = []
        for name in names:
            layer: Any = model.get_submodule(name)
            sparse = isinstance(layer, SparseLinear | SparseConv2d)
            rows, cols = (layer.out_features, layer.in_features) if sparse else layer.weight.flatten(1).shape
            inputs = layer.in_channels if hasattr(layer, "kernel_size") else cols
            made = integer_layer(
                layer, torch.zeros(rows, cols, dtype=torch.int32), torch.ones(1),
                torch.ones(inputs) if self.input_scale else None, torch.zeros(rows) if self.bias else None,
            )  # fmt: skip
            if self.activations:
                made.activation = SampledActivation(1.0)
            replace_module(model, name, made)
            changes.append(Change(name, type(layer).__name__, type(made).__name__, (0, 0), (0, 0)))
        return changes
