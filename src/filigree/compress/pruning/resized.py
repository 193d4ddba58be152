"""The config `Resized`: layers of other sizes, how `fg.load` rebuilds a pruned network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from filigree.config import config
from filigree.convert import Change, Conversion
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.topology.flat_indices import pattern_from_flat_indices

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def sizes_of(module: nn.Module) -> list[int] | None:
    """The sizes of a layer that pruning can change; None of other modules."""
    layer: Any = module
    if isinstance(module, nn.Linear | SparseLinear):
        return [layer.out_features, layer.in_features, int(layer.bias is not None)]
    if isinstance(module, nn.Conv2d):
        return [layer.out_channels, layer.in_channels, int(layer.bias is not None), layer.groups]
    if isinstance(module, NORMS):
        return [layer.num_features]
    return None


@config
class Resized(Conversion):
    """Layers with these sizes and empty parameters, to be filled by `load_state_dict`.

    Args:
        sizes: of each module: outputs, inputs, whether it has a bias (and groups) of a linear layer or a convolution;
            features of a batch norm.
    """

    sizes: dict[str, list[int]]

    def accepts(self, module: nn.Module) -> bool:
        return sizes_of(module) is not None

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        changes = []
        for name in names:
            layer: Any = model.get_submodule(name)
            sizes = self.sizes[name]
            before = sum(p.numel() for p in layer.parameters())
            if isinstance(layer, NORMS):
                self._norm(layer, sizes[0])
            else:
                self._weighted(layer, sizes)
            after = sum(p.numel() for p in layer.parameters())
            changes.append(Change(name, type(layer).__name__, type(layer).__name__, (before, after), (0, 0)))
        return changes

    def _weighted(self, layer: Any, sizes: list[int]) -> None:
        outs, ins, bias, *groups = sizes
        old = layer.values if isinstance(layer, SparseLinear) else layer.weight
        if isinstance(layer, nn.Conv2d):
            layer.out_channels, layer.in_channels, layer.groups = outs, ins, groups[0]
            layer.weight = nn.Parameter(old.new_empty(outs, ins // groups[0], *layer.kernel_size))
        else:
            layer.out_features, layer.in_features = outs, ins
            if isinstance(layer, SparseLinear):
                layer.values = nn.Parameter(old.new_empty(0))
                layer._set_pattern(pattern_from_flat_indices(torch.empty(0, dtype=torch.int64), outs, ins))
            else:
                layer.weight = nn.Parameter(old.new_empty(outs, ins))
        layer.bias = nn.Parameter(old.new_empty(outs)) if bias else None

    def _norm(self, layer: Any, features: int) -> None:
        layer.num_features = features
        for name, parameter in list(layer._parameters.items()):
            if parameter is not None:
                layer._parameters[name] = nn.Parameter(parameter.new_empty(features))
        for name in ("running_mean", "running_var"):
            if layer._buffers.get(name) is not None:
                layer._buffers[name] = layer._buffers[name].new_empty(features)
