"""Pruning of connections: layers become sparse ones of the same size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.passes import in_chunks, run_hooked
from filigree.compress.pruning.errors import OutputError
from filigree.compress.pruning.refit import better, channels_of, least_squares, targets_of
from filigree.compress.pruning.removal import copy_of
from filigree.compress.pruning.samples import calls_of
from filigree.config import listed
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.sparse.sparse import Sparse, channel_major_
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

    With data and `compensate="least_squares"` the weights of linear layers that stay are refitted, each unit's on its
    own connections, and gain no bias; without data they stay as they are.
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
    for name in names:
        layer: Any = model.get_submodule(name)
        scores = score(layer.weight.detach()).flatten()
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[scores.topk(max(1, round(config.keep * scores.numel()))).indices] = True
        mask = mask.view_as(layer.weight)
        new = (SparseConv2d if isinstance(layer, nn.Conv2d) else SparseLinear).from_dense(layer, mask)
        replace_module(pruned, name, new)
        changes.append(Change.of(name, layer, new))
    linear = [name for name in names if isinstance(model.get_submodule(name), nn.Linear)]
    if linear and config.compensate == "least_squares" and data is not None:
        some = in_chunks(model, data.some(config.samples, config.seed))
        refitted, targets = copy_of(pruned), targets_of(model, linear, [], calls_of(model, some, ["", *linear]))
        run_hooked(model, some, {name: target.add for name, target in targets.items()})
        unfit = least_squares(refitted, channels_of(model, [], {}), targets, some, config.damping, biases=False)
        pruned, note = better(who, "least_squares", pruned, refitted, OutputError.of(model, some), unfit)
        changes.append(Change.of("outputs", None, None, note))
    for name in names:
        replace_module(model, name, pruned.get_submodule(name))
    return [*changes, *channel_major_(model)], [(Sparse(Empty(), fuse=False), names)]
