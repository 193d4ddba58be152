"""A copy of a network without some of its units; and the modules of the network itself, made as small as the copy's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filigree.compress.pruning.graph import Units, without
from filigree.compress.pruning.tracing import Node
from filigree.computed_weights import copied
from filigree.config import one_line
from filigree.nn.resizing import CONVOLUTIONS, NORMS, TRANSPOSED, cuts_itself, has_units, is_conv1d, weight_sides


def copy_of(model: nn.Module) -> nn.Module:
    """A copy. `ValueError`: torch cannot copy it, in one line."""
    try:
        return copied(model)
    except Exception as error:  # of modules that hold computed tensors, open files and so on
        raise ValueError(f"pruning: this model cannot be copied: {one_line(error)}") from None


def gone_channels(groups: Sequence[Units], kept: Mapping[str, Tensor]) -> dict[Node, Tensor]:
    """The channels that go when of each group only these units stay."""
    gone: dict[Node, set[int]] = {}
    for group in groups:
        for member in group.members:
            columns = member.columns[~torch.isin(member.units, kept[group.name])]
            if len(columns):
                gone.setdefault(member.node, set()).update(columns.tolist())
    return {node: torch.tensor(sorted(columns)) for node, columns in gone.items()}


def pruned(model: nn.Module, groups: Sequence[Units], kept: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model with only these units of each group; its ties stay.

    Raises:
        ValueError: names what cannot be made smaller.
    """
    smaller = copy_of(model)
    cut: dict[tuple[int, int | str], Any] = {}  # a tensor that several modules hold is cut once
    resized: dict[str, nn.Module] = {}
    held: list[Tensor] = []
    for (name, side), columns in _with_new_biases(smaller, gone_channels(groups, kept)).items():
        if isinstance(side, str):
            layer: Any = smaller.get_submodule(name)
            if side == "out":
                layer.keep_outputs_(without(layer.out_features, columns))
            else:
                layer.keep_inputs_(without(layer.in_features, columns))
            continue
        owner, _, key = name.rpartition(".")
        module: Any = smaller.get_submodule(owner)
        tensor = getattr(module, key)
        if (id(tensor), side) not in cut:
            part = tensor.detach().index_select(side, without(tensor.shape[side], columns).to(tensor.device))
            is_parameter = isinstance(tensor, nn.Parameter)
            cut[id(tensor), side] = nn.Parameter(part, tensor.requires_grad) if is_parameter else part
            held.append(tensor)
        setattr(module, key, cut[id(tensor), side])
        resized[owner] = module
    for name, module in resized.items():
        _note_sizes(module, model.get_submodule(name))
    _change_attributes(smaller, groups, kept)
    return smaller


def _with_new_biases(model: nn.Module, gone: dict[Node, Tensor]) -> dict[Node, Tensor]:
    """Layers may have gained a bias since the channels were found."""
    for (name, side), columns in list(gone.items()):
        owner, _, key = name.rpartition(".")
        layer: Any = model.get_submodule(owner) if key == "weight" else None
        if has_units(layer) and side == weight_sides(layer)[0] and layer.bias is not None:
            gone.setdefault((f"{owner}.bias".removeprefix("."), 0), columns)
    return gone


def _note_sizes(module: Any, before: Any) -> None:
    """Let the attributes of one of torch's modules say what sizes its tensors have."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, CONVOLUTIONS):
        if before.weight.shape[1] == 1 and before.groups > 1:  # of depth: each output of a group is cut alike
            module.groups = before.groups * weight.shape[0] // before.weight.shape[0]
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, TRANSPOSED):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif is_conv1d(module):
        module.nx, module.nf = weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_groups = len(weight) if before.num_groups == before.num_channels else before.num_groups
        module.num_channels = len(weight)
    elif isinstance(module, (*NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)):
        numbers = next((t for t in (weight, module._buffers.get("running_mean")) if t is not None), None)
        module.num_features = module.num_features if numbers is None else len(numbers)


def _change_attributes(smaller: nn.Module, groups: Sequence[Units], kept: Mapping[str, Tensor]) -> None:
    """Sizes that modules have written down become those that are left."""
    written: dict[tuple[str, str, int | None], set[int]] = {}
    for group in groups:
        for size, key, position in group.attributes:
            columns = size.columns[~torch.isin(size.units, kept[group.name])]
            written.setdefault((size.module, key, position), set()).update(columns.tolist())
    for (name, key, position), channels in written.items():
        module = smaller.get_submodule(name)
        value = getattr(module, key)
        if position is None:
            setattr(module, key, value - len(channels))
        else:
            parts = list(value)
            parts[position] -= len(channels)
            setattr(module, key, type(value)(parts))


def take_over(model: nn.Module, smaller: nn.Module) -> None:
    """Give the model's modules the parameters and sizes of a pruned copy's.

    The modules stay the same objects, and so does what else they hold: the copy's lists hold the copy's modules.
    """
    for name, source in smaller.named_modules():
        target = model.get_submodule(name)
        before, whole = vars(target), cuts_itself(source)
        for key, value in vars(source).items():
            stays = key in ("_modules", "training") or "hooks" in key
            if not stays and (whole or key in ("_parameters", "_buffers") or key not in before or _is_size(value)):
                before[key] = value


def _is_size(value: Any) -> bool:
    """Whether an attribute is one that removal changes: a tensor, a number, or several numbers."""
    several = isinstance(value, tuple | list) and len(value) > 0
    return isinstance(value, int | Tensor) or (several and all(type(part) is int for part in value))
