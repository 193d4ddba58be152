"""Whether layers read units where the graph says."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from filigree.compress.pruning.graph import Reader, Units, pruned, without
from filigree.convert import inference_context


def check_positions(model: nn.Module, groups: list[Units], kept: Mapping[str, Tensor], x: Tensor) -> None:
    """Without units a network must compute what it does when nobody reads them: not so where something between a layer
    and its readers reorders its units, or mixes them. Norms over all units, which mix them too, are let through.

    Raises:
        ValueError: names the first layer whose units are not where they should be.
    """
    some = [group for group in groups if len(kept[group.name]) < group.count]
    mixing = any(isinstance(module, nn.LayerNorm | nn.GroupNorm) for module in model.modules())
    if not some or mixing or _agree(model, some, kept, x):
        return
    for group in some:
        if not _agree(model, [group], kept, x):
            raise ValueError(
                f"pruning: what stands between {group.name!r} and the layers that read its units reorders or mixes "
                "them. Name other layers with where=."
            )
    raise ValueError("pruning: these units cannot be taken out together. Name fewer layers with where=.")


def _agree(model: nn.Module, groups: list[Units], kept: Mapping[str, Tensor], x: Tensor) -> bool:
    gone = {group.name: without(group.count, kept[group.name]) for group in groups}
    masked = copy.deepcopy(model)
    for group in groups:
        for reader in group.readers:
            _ignore(masked.get_submodule(reader.name), reader, gone[group.name])
    small = pruned(model, gone, x[:1])
    with inference_context(masked), inference_context(small):
        expected, output = (out if isinstance(out, Tensor) else out[0] for out in (masked(x), small(x)))
    return torch.allclose(output, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()) + 1e-6)


def _ignore(layer: Any, reader: Reader, units: Tensor) -> None:
    """Weights of 0 for what the layer reads of these units."""
    columns = reader.columns[torch.isin(reader.units, units)]
    if hasattr(layer, "ignore_inputs_"):
        layer.ignore_inputs_(columns)
        return
    grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
    each = layer.weight.shape[1]  # inputs of a group
    for column in columns.tolist():
        outputs = len(layer.weight) // layer.groups if grouped else len(layer.weight)
        first = column // each * outputs if grouped else 0
        layer.weight.data[first : first + outputs, column % each] = 0
