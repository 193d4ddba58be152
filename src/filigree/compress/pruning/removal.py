"""A copy of a network without some of its units; and the modules of the network itself, made as small as the copy's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filigree.compress.pruning.graph import Units, is_depthwise, pruners_of, without
from filigree.config import one_line


def copied(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        ValueError: torch cannot copy it, in one line.
    """
    try:
        return copy.deepcopy(model)
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
    """A copy of the model with only these units of each group; flags and ties of its parameters stay.

    Raises:
        ValueError: names what cannot be made smaller.
    """
    smaller = copied(model)
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
    _keep_flags_and_ties(model, smaller)
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


def _keep_flags_and_ties(model: nn.Module, smaller: nn.Module) -> None:
    """Parameters are trainable as before; those that were one and still hold the same numbers are one again."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    for parameter, (first, *others) in names.items():
        one = smaller.get_parameter(first)
        one.requires_grad_(parameter.requires_grad)
        for name in others:
            other = smaller.get_parameter(name)
            other.requires_grad_(parameter.requires_grad)
            if other is not one and torch.equal(one, other):
                owner, _, key = name.rpartition(".")
                smaller.get_submodule(owner)._parameters[key] = one


def shared_weights(model: nn.Module) -> dict[str, str]:
    """Modules one of whose own parameters is another module's as well, and the name of that parameter there."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    modules = dict(model.named_modules())  # each once: where one stands twice, its parameters are shared with itself
    shared = {}
    for of_one in names.values():
        owners = {owner: name for name in of_one if (owner := name.rpartition(".")[0]) in modules}
        for owner in owners:
            if elsewhere := [name for other, name in owners.items() if other != owner]:
                shared[owner] = elsewhere[0]
    return shared


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
