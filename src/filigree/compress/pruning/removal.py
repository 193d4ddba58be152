"""A copy of a network without some of its units; and the modules of the network itself, made as small as the copy's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filigree.compress.pruning.graph import Units, is_depthwise, pruners_of, without
from filigree.computed_weights import copied
from filigree.config import one_line
from filigree.ties import shared_parameters


def copy_of(model: nn.Module) -> nn.Module:
    """A copy. `ValueError`: torch cannot copy it, in one line."""
    try:
        return copied(model)
    except Exception as error:  # of modules that hold computed tensors, open files and so on
        raise ValueError(f"pruning: this model cannot be copied: {one_line(error)}") from None


def gone_channels(groups: Sequence[Units], kept: Mapping[str, Tensor]) -> dict[tuple[str, str, int | None], list[int]]:
    """The channels that go when of each group only these units stay: by name, side and (of parameters) dimension."""
    gone: dict[tuple[str, str, int | None], set[int]] = {}
    for group in groups:
        for member in group.members:
            columns = member.columns[~torch.isin(member.units, kept[group.name])]
            if len(columns):
                gone.setdefault((member.name, member.side, member.dim), set()).update(columns.tolist())
    return {member: sorted(columns) for member, columns in gone.items()}


def pruned(model: nn.Module, groups: Sequence[Units], kept: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model with only these units of each group; its ties stay.

    Raises:
        ValueError: names what cannot be made smaller.
    """
    smaller = copy_of(model)
    pruners = pruners_of(smaller)
    # all before anything shrinks: a grouped convolution may become one of depth
    steps = [
        (name, columns, _shrinking(smaller, pruners, name, side, dim))
        for (name, side, dim), columns in gone_channels(groups, kept).items()
    ]
    for name, columns, shrink in steps:
        try:
            shrink(columns)
        except Exception as error:  # of torch-pruning, or of a module that refuses what it is given
            raise ValueError(
                f"pruning: {name!r} cannot be made smaller: {one_line(error) or type(error).__name__}"
            ) from None
    _keep_ties(model, smaller)
    return smaller


def _shrinking(model: nn.Module, pruners: Any, name: str, side: str, dim: int | None) -> Callable[[list[int]], None]:
    """What takes channels out of this module or parameter."""
    if dim is not None:
        owner, _, key = name.rpartition(".")
        parameter = model.get_parameter(name)

        def shrink(columns: list[int]) -> None:
            kept = without(parameter.shape[dim], torch.tensor(columns))
            smaller = nn.Parameter(parameter.detach().index_select(dim, kept))
            setattr(model.get_submodule(owner), key, smaller)

        return shrink
    module: Any = model.get_submodule(name)
    pruner = pruners.get_pruner_of_module(module)
    prune = pruner.prune_in_channels if side == "in" and not is_depthwise(module) else pruner.prune_out_channels
    if not (isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels):
        return lambda columns: prune(module, columns)

    def shrink_each(columns: list[int]) -> None:  # each channel is a group
        prune(module, columns)
        module.num_groups = module.num_channels

    return shrink_each


def _keep_ties(model: nn.Module, smaller: nn.Module) -> None:
    """Parameters that were one and still hold the same numbers are one again, so that a budget counts them once."""
    for _, (first, *others) in shared_parameters(model).values():
        one = smaller.get_parameter(first)
        for name in others:
            owner, _, key = name.rpartition(".")
            if torch.equal(one, smaller.get_parameter(name)):
                smaller.get_submodule(owner)._parameters[key] = one


def take_over(model: nn.Module, smaller: nn.Module) -> None:
    """Give the model's modules the parameters and sizes of a pruned copy's; the modules stay the same objects."""
    for name, source in smaller.named_modules():
        target = model.get_submodule(name)
        hooks = {key: value for key, value in target.__dict__.items() if "hooks" in key}
        children, training = target.__dict__["_modules"], target.training
        target.__dict__.update(source.__dict__)
        target.__dict__.update(hooks)
        target.__dict__["_modules"] = children
        target.training = training
