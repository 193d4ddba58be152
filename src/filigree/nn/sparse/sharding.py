"""The verb `shard_`: the rows of sparse layers are divided over processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from filigree.convert import Change, Report, replace_module
from filigree.layer_selection import Where, matching
from filigree.nn.sparse.copies import fingerprint
from filigree.nn.sparse.sharded_linear import ShardedLinear
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.topology.shards import Shards, Whole, shards_of
from filigree.wrappers import check_module

FEW = "stays whole: fewer rows than processes"


def shard_(model: nn.Module, where: Where = None, group: Any = None) -> Report:
    """Divide the rows of sparse linear layers over the processes of a group, in place; see `fg.nn.ShardedLinear`.

        torch.distributed.init_process_group("gloo")  # under torchrun
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=10)))
        fg.shard_(model)

    Each process keeps its rows only, so a layer, its gradients and its optimizer take a share of the memory. The model
    must be the same in all processes, which all call this together; layers that no process can hold are made so from
    the beginning by `fg.Sparse(..., sharded=True)`. Layers with fewer rows than there are processes stay whole. Without
    a process group a layer keeps all of its rows.

    Args:
        model: holds sparse linear layers (after `fg.convert_`). An optimizer is made afterwards.
        where: which of them, by default all: a predicate `(name, layer) -> bool`, or glob patterns on their names.
        group: the processes, a group of `torch.distributed`; default: all.

    Returns:
        A printable report. Its numbers after are those of this process.

    Raises:
        ValueError: no sparse linear layer was selected; the processes' models differ; several processes without a
            group.
    """
    check_module(model, "shard_")
    layers = _whole_layers(model)
    if not layers:
        raise ValueError(
            "shard_: the model has no sparse linear layers inside. Call fg.convert_(model, fg.Sparse(...)) first."
        )
    names = matching(layers, where, "shard_", "sparse linear layer")
    part = shards_of(group, "shard_")
    check_same(model, part, "shard_")
    changes = divide_(model, names, group)
    return Report(f"shard_: {len(names)} layer(s) over {part.processes} process(es)", changes)


def divide_(model: nn.Module, names: list[str] | None = None, group: Any = None) -> list[Change]:
    """What `shard_` does to these layers, by default all; nothing is compared between the processes."""
    part, layers = shards_of(group, "shard_"), _whole_layers(model)
    changes = []
    for name in layers if names is None else names:
        layer = layers[name]
        if layer.out_features < part.processes:
            changes.append(Change.of(name, layer, layer, FEW))
            continue
        replace_module(model, name, sharded := ShardedLinear.of(layer, group))
        changes.append(Change.of(name, layer, sharded))
    return changes


def _whole_layers(model: nn.Module) -> dict[str, SparseLinear]:
    """The sparse linear layers of a model, those that hold the rows of a sharded one apart."""
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, ShardedLinear))
    return {
        name: module for name, module in model.named_modules()
        if name and type(module) is SparseLinear and not name.startswith(inside)
    }  # fmt: skip


def check_same(model: nn.Module, part: Whole, who: str) -> None:
    """Raise `ValueError` in every process where a tensor of the model differs between them, rows of shards apart."""
    if not isinstance(part, Shards):
        return
    sharded = tuple(f"{name}.own.".removeprefix(".") for name, module in model.named_modules()
                    if isinstance(module, ShardedLinear))  # fmt: skip
    prints = {
        name: (tuple(tensor.shape), fingerprint(tensor)) for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and not name.startswith(sharded)
    }  # fmt: skip
    digest = hashlib.sha256(repr(sorted(prints.items())).encode()).hexdigest()
    if len(set(part.objects(digest))) == 1:
        return
    everywhere = part.objects(prints)
    names = dict.fromkeys(name for prints in everywhere for name in prints)
    name = next(name for name in names if len({prints.get(name) for prints in everywhere}) > 1)
    raise ValueError(
        f"{who}: the model must be the same in all processes. {name!r} differs: give all of them the same seed, or the "
        "same file."
    )


def sharded_layers(model: nn.Module) -> Iterator[ShardedLinear]:
    """The layers of a model whose rows are divided over several processes."""
    for module in model.modules():
        if isinstance(module, ShardedLinear) and module.runs_together:
            yield module


def shards_in(model: nn.Module) -> Shards | None:
    """The division of the model's layers; None where each process has all of it."""
    return next((layer.part for layer in sharded_layers(model) if isinstance(layer.part, Shards)), None)
