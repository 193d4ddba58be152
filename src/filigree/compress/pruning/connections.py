"""Pruning of connections: layers become sparse ones of the same size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.one_shot.fitting import How, fitted, side_by_side
from filigree.compress.one_shot.moments import moments_of, order_of, parts_of
from filigree.compress.one_shot.patterns import Pattern
from filigree.compress.one_shot.products import products_of
from filigree.compress.pruning.errors import OutputError
from filigree.compress.pruning.refit import better
from filigree.compress.pruning.removal import copy_of
from filigree.config import listed
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.sparse.sparse import Sparse, around_sparse_
from filigree.nn.sparse.sparse_conv2d import SparseConv2d
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.ties import why_tied
from filigree.topology import Empty

Compressed = tuple[list[Change], list[tuple[Conversion, list[str]]]]


@torch.no_grad()
def prune_connections(
    config: Any, model: nn.Module, names: list[str], data: Calibration | None, score: Callable[[Tensor], Tensor]
) -> Compressed:
    """Keep the share `config.keep` of each dense layer's weights, those of the highest score.

    With data and `compensate="least_squares"` the weights that stay are refitted, each unit's or filter's on its own
    connections, on what the pruned network computes for it; layers gain no bias. Without data they stay as they are.
    """
    who = type(config).__name__
    if not isinstance(config.keep, float) or config.compensate == "correlation":
        raise ValueError(f'{who}: for connections keep must be a share, and compensate "least_squares" or None.')
    dense = [name for name in names if type(model.get_submodule(name)) in (nn.Linear, nn.Conv2d)]
    if not dense:
        raise ValueError(f"{who}: connections are pruned of dense layers. None of {listed(names)} is one.")
    tied = {name: reason for name, reason in why_tied(model).items() if name in dense}
    names = [name for name in dense if name not in tied]
    if not names:
        raise ValueError(f"{who}: {dense[0]!r} {tied[dense[0]]}, which cannot be kept.")
    pruned, changes = copy_of(model), [Change.of(name, None, None, f"left whole: {why}") for name, why in tied.items()]
    masks: dict[str, Tensor] = {}
    for name in names:
        layer: Any = pruned.get_submodule(name)
        scores = score(layer.weight.detach()).flatten()
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[scores.topk(max(1, round(config.keep * scores.numel()))).indices] = True
        masks[name] = mask.view_as(layer.weight)
        layer.weight = nn.Parameter(layer.weight * masks[name])
    if config.compensate == "least_squares" and data is not None:
        some, refitted = data.some(config.samples, config.seed), copy_of(pruned)
        unfit = _refit(config, model, refitted, masks, some)
        pruned, note = better(who, "least_squares", pruned, refitted, OutputError.of(model, some), unfit)
        changes.append(Change.of("outputs", None, None, note))
    for name in names:
        old: Any = model.get_submodule(name)
        kind: Any = SparseConv2d if isinstance(old, nn.Conv2d) else SparseLinear
        new = kind.from_dense(pruned.get_submodule(name), masks[name])
        replace_module(model, name, new)
        changes.append(Change.of(name, old, new))
    return [*changes, *around_sparse_(model)], [(Sparse(Empty(), fuse=False), names)]


def _refit(
    config: Any, model: nn.Module, pruned: nn.Module, masks: dict[str, Tensor], data: Calibration
) -> dict[str, str]:
    """Refit the layers of a pruned copy in the order in which they run; returns why others are not refitted."""
    chunks, how = parts_of(data), How("magnitude", Pattern(), True, config.damping)
    runs = order_of(pruned, list(masks), chunks)
    for name, times in runs.items():
        (product,) = products_of(pruned.get_submodule(name)).values()
        weight = product.matrix(model.get_submodule(name))
        mask = masks[name].view_as(weight)
        parts = [
            fitted(weight[..., at], moments, 1.0, how, product.taps, mask=mask[..., at])
            for at, moments in moments_of(product, name, (model, pruned), chunks, times, config.seed)
        ]
        new = side_by_side(parts)
        product.write_(pruned.get_submodule(name), new.weight, new.shift)
    return {name: "the data do not reach it" for name in masks if name not in runs}
