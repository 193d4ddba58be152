"""Which units of a model can be taken out, and what its code has written down of their number: tried out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.pruning.graph import Size, Units, units_of
from filigree.compress.pruning.proof import refuse, why_not, with_random_weights, wrong_groups
from filigree.config import listed
from filigree.nn.resizing import has_units, sizes_of

_WITH_SIZES = (  # of torch's modules those that know how many channels they get, beside those that pruning resizes
    nn.Unflatten, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
_CHANNELS = re.compile("head|dim|size|channel|feature|width|embed|hidden|inner|split|plane|shape|filter")
_OTHERS = re.compile("group|position|length|window|patch|kernel|layer|index|idx")

Attribute = tuple[Size, str, int | None]


def removable(
    model: nn.Module, names: Sequence[str], x: Calibration, who: str, every: bool
) -> tuple[list[Units], dict[str, str]]:
    """The units that these layers make and that can be taken out: tried on half of each group's, drawn at random.

    What does not work is tried in other ways: with attributes of modules that are as large as the number of channels
    their code meets changed along or not, and with units along the last dimension of channels that are split.

    Returns:
        The units, and by the names of layers why others stay whole.

    Raises:
        ValueError: there are none, or, unless `every` layer is meant, one of them cannot be taken out.
    """
    candidates = [_with_attributes(model, group) for group in units_of(model, x[:2], names)]
    groups = [next(_variants(group, first=True)) for group in candidates]
    if not groups and not any(sizes_of(model.get_submodule(name))[0] == 1 for name in names):  # type: ignore[index]
        raise ValueError(f"{who}: none of {listed(names)} has units that another layer reads: nothing to prune.")
    random = with_random_weights(model)
    free = [group for group in groups if not group.problem]

    def tried(some: Sequence[Units]) -> dict[str, str]:
        half = _halves(some)
        return wrong_groups(random, some, half, x) or wrong_groups(model, some, half, x)

    if (wrong := tried(free)) and (others := _otherwise(model, random, candidates, wrong, x)):
        free = [others.get(group.name, group) for group in free]
        wrong = tried(free)
    left = [group for group in free if group.name not in wrong]
    together = wrong_groups(model, left, _halves(left), x) if wrong else {}
    problems = {group.name: f"they {group.problem}" for group in groups if group.problem}
    wrong = {group.name: (wrong | problems)[group.name] for group in groups if group.name in wrong | problems}
    if wrong and (not every or not left or together):
        refuse(wrong, who)
    return left, wrong


def _otherwise(
    model: nn.Module, random: nn.Module, groups: Sequence[Units], wrong: Mapping[str, str], x: Calibration
) -> dict[str, Units]:
    """Other ways to take out the units that are wrong, which work."""
    tried = {group.name: list(_variants(group)) for group in groups if group.name in wrong and not group.problem}
    if tried:
        makers = {name for group in groups if group.name in tried for name in group.makers}
        for group in units_of(model, x[:2], sorted(makers), last=sorted(makers)):
            before = next((one for one in groups if one.name == group.name), None)
            if before is not None and not group.problem and group.count != before.count:
                tried[group.name] += _variants(_with_attributes(model, group), first=True)

    def works(group: Units) -> bool:
        half = _halves([group])
        return not (why_not(random, group, half, x) or why_not(model, group, half, x))

    working = {name: next(filter(works, variants), None) for name, variants in tried.items()}
    return {name: group for name, group in working.items() if group is not None}


def _halves(groups: Sequence[Units]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        group.name: torch.randperm(group.count, generator=generator)[: -(-group.count // 2)].sort().values
        for group in groups
    }


def _with_attributes(model: nn.Module, group: Units) -> Units:
    """With all attributes that could be numbers of its channels."""
    attributes: dict[tuple[str, str, int | None], Attribute] = {}
    for size in group.sizes:
        module = model.get_submodule(size.module)
        if type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, _WITH_SIZES):
            continue
        if has_units(module) or (isinstance(module, _WITH_SIZES) and any(True for _ in module.parameters())):
            continue  # resized by their tensors
        for key, value in vars(module).items():
            if key.startswith("_") or isinstance(value, bool):
                continue
            parts = [(None, value)] if isinstance(value, int) else list(enumerate(value)) if _is_sizes(value) else []
            for position, part in parts:
                if part == size.size:
                    attributes.setdefault((size.module, key, position), (size, key, position))
    return dataclasses.replace(group, attributes=list(attributes.values()))


def _is_sizes(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(type(part) is int for part in value)


def _variants(group: Units, first: bool = False) -> Iterator[Units]:
    """The group with other choices of its attributes: all, those that speak of heads, none of them."""
    every = group.attributes
    named = [attribute for attribute in every if _speaks_of(attribute[1])]
    heads = [attribute for attribute in named if "head" in attribute[1] and "dim" not in attribute[1]]
    tried: list[list[Attribute]] = [] if first else [named]
    for some in (named, every, heads, []):
        if some not in tried:
            tried.append(some)
            yield dataclasses.replace(group, attributes=some)


def _speaks_of(key: str) -> bool:
    """Whether an attribute's name tells that it is a number of channels."""
    return bool(_CHANNELS.search(key)) and not _OTHERS.search(key)
