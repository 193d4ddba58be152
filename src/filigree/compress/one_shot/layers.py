"""The layers that a pruned network gets: sparse ones, integers, or dense ones with zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from filigree.compress.one_shot.fitting import Fitted, one_below_another, part_of
from filigree.compress.one_shot.products import Recurrent, products_of
from filigree.compress.one_shot.rounding import parts_of_columns
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.integer.empty_integer_layers import EmptyIntegerLayers, has_integer_form, integer_layer
from filigree.nn.sparse.sparse import Sparse, around_sparse_
from filigree.nn.sparse.sparse_conv2d import SparseConv2d
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.nn.structured.structured_rnn import StructuredRNN
from filigree.topology import Empty

Steps = list[tuple[Conversion, list[str]]]


def with_layers(
    model: nn.Module, pruned: nn.Module, names: Sequence[str], fits: Mapping[str, Mapping[str, Fitted]],
    left: Mapping[str, str], multiple: int,
) -> tuple[list[Change], Steps]:  # fmt: skip
    """Give the model the weights of its pruned copy, in layers that know of their zeros where there are such.

    Args:
        names: of modules of the model. fits: what became of the products of each, by name. left: why others stay whole.
        multiple: as of `products_of`.

    Returns:
        The report's lines, and what rebuilds the layers on loading.
    """
    changes = [Change.of(name, None, None, f"left whole: {why}") for name, why in left.items()]
    sparse: list[str] = []
    steps: Steps = []
    for name in names:
        module, copy = model.get_submodule(name), pruned.get_submodule(name)
        if name not in fits:
            continue
        if type(module) in (nn.LSTM, nn.GRU) and not module.proj_size:
            fitted, looped = _by_parameter(copy, fits[name], multiple), StructuredRNN.unfolded(copy)
            for key, layer in list(looped.products.items()):
                fit, path = fitted.get(f"weight_{key}", {}), f"{name}.products.{key}"
                looped.products[key] = new = _layer(layer, fit, layer)
                changes.append(Change.of(path, layer, new, _note(fit, new)))
                if not isinstance(new, SparseLinear):
                    steps.append((EmptyIntegerLayers.like(new), [path]))
            replace_module(model, name, looped)
            sparse.append(name)
        else:
            new = _layer(module, fits[name], copy)
            changes.append(Change.of(name, module, new, _note(fits[name], new)))
            if new is copy:
                _take_parameters(module, copy)
                continue
            replace_module(model, name, new)
            if isinstance(new, SparseLinear | SparseConv2d):
                sparse.append(name)
            else:
                steps.append((EmptyIntegerLayers.like(new), [name]))
    if sparse:
        steps.insert(0, (Sparse(Empty(), fuse=False), sparse))
    return [*changes, *around_sparse_(model)], steps


def _layer(layer: Any, fits: Mapping[str, Fitted], pruned: Any) -> Any:
    """What takes a layer's place, with the weights of its pruned copy; the copy where it can only be dense."""
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return pruned
    part = fits.get("")
    if part is not None and part.counts is not None and part.scale is not None and has_integer_form(layer):
        counts, scale = part.counts.flatten(0, 1).to(torch.int32), part.scale.flatten().to(pruned.weight)
        return integer_layer(layer, counts, scale, None, pruned.bias)
    product = products_of(layer)[""]
    mask = torch.ones_like(pruned.weight, dtype=torch.bool) if part is None else product.mask(layer, part.mask)
    return (SparseConv2d if isinstance(layer, nn.Conv2d) else SparseLinear).from_dense(
        pruned, mask.view_as(pruned.weight)
    )


def _by_parameter(module: nn.Module, fits: Mapping[str, Fitted], multiple: int) -> dict[str, dict[str, Fitted]]:
    """What became of each matrix of a recurrent network, of fits to some of its rows, or to two side by side."""
    rows: dict[str, list[Fitted]] = {}
    for key, product in products_of(module, multiple).items():
        if key in fits and isinstance(product, Recurrent):
            columns = parts_of_columns(product.widths(module))
            for number, (part, at) in enumerate(zip(product.parameters(), columns, strict=True)):
                rows.setdefault(part.weight, []).append(part_of(fits[key], number, at))
    return {name: {"": one_below_another(parts)} for name, parts in rows.items()}


def _take_parameters(module: nn.Module, pruned: nn.Module) -> None:
    for own, other in zip(module.modules(), pruned.modules(), strict=True):
        for key, parameter in other._parameters.items():
            if parameter is not None:
                setattr(own, key, parameter)  # recurrent networks have a list of them besides


def _note(fits: Mapping[str, Fitted], new: Any) -> str:
    parts = list(fits.values())
    if not parts:
        return "left whole"
    weights, kept = sum(part.mask.numel() for part in parts), sum(int(part.mask.sum()) for part in parts)
    notes = [f"{kept / weights:.1%} of the weights kept"]
    if size := sum(part.size for part in parts):
        notes.append(f"error {(sum(part.lost for part in parts) / size) ** 0.5:.3g}")
    if hasattr(new, "bits"):
        notes.append(f"{new.bits:.3g} bits a weight")
    elif not isinstance(new, SparseLinear | SparseConv2d):
        notes.append("stays dense, with zeros")
    return ", ".join(notes)
