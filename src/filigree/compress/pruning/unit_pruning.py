"""What all pruning of units shares: from the units that are kept to a smaller network that computes nearly the same."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import dropwhile
from typing import Annotated, Any, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.compression import Compression
from filigree.compress.layer_speed import Times
from filigree.compress.passes import Chunk, Hook, in_chunks
from filigree.compress.pruning.apart import TakenApart, can_be_apart, can_be_folded
from filigree.compress.pruning.budget import Budget, Counts, MaxError, allocate
from filigree.compress.pruning.clusters import dead, replacements_of
from filigree.compress.pruning.correlation import correlation
from filigree.compress.pruning.errors import OutputError
from filigree.compress.pruning.graph import Units, layer_macs, units_of
from filigree.compress.pruning.proof import refuse, wrong_groups
from filigree.compress.pruning.redundancy import Redundancy, fold
from filigree.compress.pruning.refit import Channels, better, channels_of, least_squares, may_gain_biases
from filigree.compress.pruning.removable import removable
from filigree.compress.pruning.removal import copy_of, pruned, take_over
from filigree.compress.pruning.samples import calls_of, unit_activations
from filigree.compress.pruning.streams import Streams
from filigree.compress.pruning.subclusters import as_count
from filigree.compress.pruning.targets import EXACT, Target, mixing, targets_of
from filigree.compress.speed import speed
from filigree.computed_weights import copied, why_computed
from filigree.config import config
from filigree.convert import Change, Conversion
from filigree.nn.integer.empty_integer_layers import weight_matrix
from filigree.nn.resizing import cuts_itself, has_units, sizes_of, weight_sides
from filigree.summary import Summary, says
from filigree.wrappers import check_on_cpu

JUDGED = 8  # samples at least by which a refit is judged: fewer say little, and are better fitted to


@dataclass
class _Observed:
    """What is known of a network that is pruned.

    Attributes:
        data: what is fitted to. error: of outputs, where there are such, on data to which nothing is fitted. left:
            groups that stay whole. is_all: whether no layer was named.
        targets: in the order in which they run. biases: whether layers may gain some. kept, replacements, notes: by
            group, of those that were chosen.
    """

    data: Calibration
    error: OutputError
    groups: list[Units]
    left: dict[str, str]
    is_all: bool
    targets: dict[str, Target]
    redundancies: dict[str, Redundancy]
    biases: bool
    kept: dict[str, Tensor] = field(default_factory=dict)
    replacements: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


Share = Annotated[float, pydantic.Field(gt=0, le=1)] | Annotated[int, pydantic.Field(ge=1)]


@config
class UnitPruning(Compression):
    """Base of the configs that take units (of linear layers) and filters (of convolutions) out of a trained network.

    The network really becomes smaller: tensors shrink, and channels are followed through all operations to what goes
    along (the next layer's inputs, batch norms, the other terms of a residual sum, blocks of a flattened filter, whole
    heads of attention). Needs a batch of inputs. Before any refit the smaller network must compute what the whole one
    does when nobody reads the units that go, on the data and on random inputs, in all its outputs: else they are
    refused by name and the model is as it was (or, where no layer is named, they are left whole, and the report says
    so).

    Subclasses say which units stay: `choose`.
    """

    keeps_ties = True  # those of the same size: units go on both sides

    keep: Share | dict[str, Share] | MaxError | Budget = 0.5
    compensate: Literal["least_squares", "correlation"] | None = "least_squares"
    damping: Annotated[float, pydantic.Field(gt=0)] = 0.01
    exact: Annotated[int, pydantic.Field(ge=0)] = EXACT
    features: Literal["flattened", "pooled"] = "flattened"
    normalize: bool = False
    round_to: Annotated[int, pydantic.Field(ge=1)] = 1
    samples: Annotated[int, pydantic.Field(ge=2)] = 1000
    seed: int = 0
    measure: bool = True

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {} if cls is UnitPruning else super().examples()

    def accepts(self, module: nn.Module) -> bool:
        return has_units(module) or can_be_apart(module)

    def keeps_computed_weights(self, module: nn.Module) -> bool:
        return can_be_folded(module)

    def choose(self, group: Units, features: Tensor, count: int | None, model: nn.Module) -> tuple[Tensor, Tensor, str]:
        """The kept units (sorted), the replacement of each unit, and what the report says of it.

        Args:
            features: of the units that are not dead `(units, numbers)`. count: how many may stay, None: the method's
            own.
        """
        raise NotImplementedError

    def ranking(
        self, group: Units, redundancy: Redundancy, covariance: Tensor, count: int, model: nn.Module
    ) -> Tensor | None:
        """The units in the order in which they stay, the first `count` or more, where fewer are always the first of
        more; None: `choose` says which ones stay."""
        return None

    def most_samples(self) -> int | None:
        return self.samples + -(-self.samples // 4)

    def trial(self) -> Compression:
        return replace(self, compensate=None, measure=False)

    def faster(self, model: nn.Module, names: list[str], times: Times, example: Calibration) -> list[str]:
        """All that make units whose makers and readers together take less time when some have gone."""
        faster: list[str] = []
        apart = TakenApart(plain := copied(model), names)
        for group in units_of(plain, example[:2], apart.names):
            layers = {apart.outer(name) for name in (*group.makers, *(reader.name for reader in group.readers))}
            before, after = (sum(times[name][i] for name in layers if name in times) for i in (0, 1))
            if after < before:
                faster += map(apart.outer, group.makers)
        return [name for name in names if name in faster]

    @torch.no_grad()
    def compress(
        self, model: nn.Module, names: list[str], data: Calibration | None
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        check_on_cpu(model, type(self).__name__)
        apart = TakenApart(model, names)
        changes = self._compress(model, apart.names, data, apart.gain_biases)
        return apart.put_together_(changes)

    def _compress(
        self, model: nn.Module, names: list[str], data: Calibration | None, gain_biases: bool
    ) -> list[Change]:
        """Take units out of a model of plain layers; the report's lines."""
        who = type(self).__name__
        observed = self._observed(model, names, *self._data(model, data))
        observed.biases &= gain_biases
        groups, kept, notes = observed.groups, observed.kept, observed.notes
        while wrong := wrong_groups(model, groups, kept, observed.data[:8]):
            if not self._all(model, names) or observed.left.keys() >= wrong.keys():
                refuse(wrong, who)
            observed.left |= wrong
            kept |= {group.name: torch.arange(group.count) for group in groups if group.name in wrong}
            observed.replacements |= {name: kept[name] for name in wrong}
        smaller, outcome = self._compensated(model, observed)
        for group in groups:
            notes[group.name] += f"; own error {observed.redundancies[group.name].own_error(kept[group.name]):.1%}"
        changes = _changes(model, smaller, observed.data[:1], groups, kept, notes)
        changes += [Change.of(name, None, None, f"left whole: {reason}") for name, reason in observed.left.items()]
        if outcome:
            changes.append(Change.of("outputs", None, None, outcome))
        if self.measure:
            changes.append(Change.of("latency", None, None, speed(model, smaller, observed.data)))
        _remember(smaller, channels_of(model, groups, kept))
        take_over(model, smaller)
        return changes

    def _data(self, model: nn.Module, data: Calibration | None) -> tuple[Calibration, Calibration | None]:
        """What is fitted to, and what errors are measured on; None: on the same data."""
        who = type(self).__name__
        if data is None:
            raise ValueError(f"{who}: a batch of inputs is needed: fg.compress_(model, config, data).")
        if data.tensor is not None and len(data) < 2:
            raise ValueError(f"{who}: at least two samples are needed. Got {len(data)}.")
        searches, held = isinstance(self.keep, MaxError | Budget), data.validation
        whole = data.some(self.samples, self.seed)
        if held is not None or not (searches or self.compensate):
            return whole, held
        data, held = data.split(self.samples, self.seed, model, 4 if searches else 8, int(searches))
        if searches:
            if held is None and isinstance(self.keep, MaxError):
                raise ValueError(
                    f"{who}: {self.keep} needs several samples or batches, or compress_(..., validation=)."
                )
            return data, held
        return (whole, None) if held is None or len(held) < JUDGED else (data, held)

    def _observed(self, model: nn.Module, names: list[str], data: Calibration, held: Calibration | None) -> _Observed:
        """Which units stay, and what was recorded of the network on the way."""
        who = type(self).__name__
        for name, module in model.named_modules():
            if says(module) and (reason := module.why_not_prunable()):
                raise ValueError(f"{who}: {name!r} {reason}. Prune before.")
        is_all = self._all(model, names)
        groups, left = removable(model, names, data[:8], who, is_all)
        groups = _most_work_first(groups, layer_macs(model, data[:1]))
        data = in_chunks(model, data)
        held = None if held is None else in_chunks(model, held)
        readers = list(dict.fromkeys(reader.name for group in groups for reader in group.readers))
        targets: dict[str, Target] = {}
        if self.compensate == "least_squares":
            also = mixing(model) if is_all else []
            calls = calls_of(model, data, ["", *dict.fromkeys([*readers, *also])])
            refitted = [name for name in calls if name in readers or (name in also and calls[name] == calls[""])]
            targets = targets_of(model, refitted, groups, calls, self.exact)
        streams = Streams(lambda name, stream: targets[name].add_stream(stream))
        hooks: dict[str, Hook] = {name: _watched(name, target, streams) for name, target in targets.items()}
        pooled, tested = self.features == "pooled", {}
        error = OutputError(data if held is None else held, _measured_on(held))
        with streams:
            features = unit_activations(model, groups, data, pooled, hooks, error.add if held is None else None)
        if held is not None:
            tested = unit_activations(model, groups, held, pooled, returned=error.add)
        redundancies = {
            group.name: Redundancy(group, model, features[group.name], tested.get(group.name)) for group in groups
        }
        observed = _Observed(data, error, groups, left, is_all, targets, redundancies, may_gain_biases(model))
        self._choose_all(model, observed)
        return observed

    def _all(self, model: nn.Module, names: list[str]) -> bool:
        """Whether these are all layers that could be named: then those that cannot be pruned are left whole."""
        return len(names) == sum(self.accepts(module) and not why_computed(module) for module in model.modules())

    def _candidate(
        self, model: nn.Module, observed: _Observed, kept: Mapping[str, Tensor], replacements: Mapping[str, Tensor],
        compensate: bool,
    ) -> tuple[nn.Module, dict[str, str]]:  # fmt: skip
        """A network with these units, compensated from what is known, in no pass over the data."""
        if not compensate or self.compensate is None:
            return pruned(model, observed.groups, kept), {}
        source, unfit = copy_of(model), {}
        if self.compensate == "correlation":
            features = {name: redundancy.features for name, redundancy in observed.redundancies.items()}
            unfit = correlation(source, observed.groups, features, replacements, observed.biases)
        else:
            fold(source, list(observed.redundancies.values()), kept, self.damping, observed.biases)
        return pruned(source, observed.groups, kept), unfit

    def _compensated(self, model: nn.Module, observed: _Observed) -> tuple[nn.Module, str]:
        """The network that the report is about, and a note of its error."""
        kept, who = observed.kept, type(self).__name__
        smaller, _ = self._candidate(model, observed, kept, observed.replacements, False)
        if not self.compensate:
            return smaller, ""
        error = observed.error
        if self.compensate == "correlation":
            compensated, unfit = self._candidate(model, observed, kept, observed.replacements, True)
            return better(who, self.compensate, smaller, compensated, error, unfit)
        less = [group for group in observed.groups if len(kept[group.name]) < group.count]
        read = {reader.name for group in less for reader in group.readers}
        later = dropwhile(lambda name: name not in read, observed.targets)  # they read what others have changed
        targets = {name: observed.targets[name] for name in later if observed.is_all or name in read}
        cut = {name for group in less for name in group.makers}
        for name in targets.keys() - cut:  # a stream that has lost units itself cannot be made whole again
            targets[name].with_streams()
        compensated = copy_of(smaller)
        channels = channels_of(model, observed.groups, kept)
        unfit = least_squares(compensated, channels, targets, observed.data, self.damping, observed.biases)
        if isinstance(self.keep, MaxError | Budget):  # what the search has seen may be the better one
            folded, _ = self._candidate(model, observed, kept, observed.replacements, True)
            compensated = min(compensated, folded, key=error)
        return better(who, self.compensate, smaller, compensated, error, unfit)

    def _choose_all(self, model: nn.Module, observed: _Observed) -> None:
        """Choose the units of all groups, as many as `keep` says."""
        choices: dict[tuple[str, int | None], tuple[Tensor, Tensor, str]] = {}
        rankings: dict[str, Tensor] = {}

        def chosen(group: Units, count: int | None) -> tuple[Tensor, Tensor, str]:
            key = group.name, count
            if key not in choices:
                choices[key] = self._alive(group, observed.redundancies[group.name], count, model, rankings)
            return choices[key]

        if isinstance(self.keep, Budget | MaxError):
            whole = {group.name: torch.arange(group.count) for group in observed.groups}

            def built(counts: Counts, compensate: bool) -> nn.Module:
                some = [group for group in observed.groups if group.name in counts]
                choice_of = {group.name: chosen(group, counts[group.name]) for group in some}
                kept = whole | {name: choice[0] for name, choice in choice_of.items()}
                replacements = whole | {name: choice[1] for name, choice in choice_of.items()}
                return self._candidate(model, observed, kept, replacements, compensate)[0]

            allocation = allocate(
                self.keep, model, observed.redundancies, lambda group, count: chosen(group, count)[0], built,
                observed.error, self.round_to,
            )  # fmt: skip
            counts, notes = allocation.counts, allocation.notes
        else:
            counts, notes = {group.name: self._count(group) for group in observed.groups}, {}
        for group in observed.groups:
            name = group.name
            observed.kept[name], observed.replacements[name], observed.notes[name] = chosen(group, counts[name])
            if name in notes:
                observed.kept[name] = observed.replacements[name] = torch.arange(group.count)
                observed.left[name] = notes[name].removeprefix("left whole: ")

    def _alive(
        self, group: Units, redundancy: Redundancy, count: int | None, model: nn.Module, rankings: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, str]:
        """The choice among the units that are not dead; the dead ones go first."""
        features = redundancy.features
        gone = dead(features)
        alive = (~gone).nonzero().squeeze(1)
        if not len(alive):
            alive = torch.arange(1)
        f, covariance = features[alive], redundancy.covariance[alive][:, alive]
        if self.normalize:
            norms = f.norm(dim=1, keepdim=True).clamp(min=1e-30)
            f, covariance = f / norms, covariance / (norms @ norms.T)
        few, replacement_of, note = self._chosen(_part(group, alive), redundancy, f, covariance, count, model, rankings)
        kept = alive[few]
        replacements = kept[torch.zeros(group.count, dtype=torch.long)]  # of a dead unit any will do: its slope is 0
        replacements[alive] = alive[replacement_of]
        died = int(gone.sum())
        return (
            kept,
            replacements,
            f"{group.count} units" + (f", {died} dead" if died else "") + (f"; {note}" if note else ""),
        )

    def _chosen(
        self, group: Units, redundancy: Redundancy, features: Tensor, covariance: Tensor, count: int | None,
        model: nn.Module, rankings: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor, str]:  # fmt: skip
        """What `choose` says, or the first of the method's `ranking`, which a search makes once."""
        most = len(features) if count is None else min(count, len(features))
        if group.name not in rankings or len(rankings[group.name]) < most:
            length = len(features) if isinstance(self.keep, Budget | MaxError) else most
            ranking = self.ranking(group, redundancy, covariance, length, model)
            if ranking is None:
                return self.choose(group, features, count, model)
            rankings[group.name] = ranking
        kept = rankings[group.name][:most].sort().values
        if self.compensate == "correlation":
            return kept, replacements_of(kept, features), ""
        return kept, kept[torch.zeros(len(features), dtype=torch.long)], ""

    @torch.no_grad()
    def candidates(
        self, model: nn.Module, names: list[str], data: Calibration
    ) -> tuple[list[Units], dict[str, str], Callable[[Mapping[str, float]], nn.Module]]:
        """The groups of units that can go, why those of other layers stay, and a function from the shares of groups
        that stay, by name, to a network compensated from covariances that are made once: what a search tries, in no
        pass over the data.
        """
        config = replace(self, keep=1.0)
        observed = config._observed(model, names, data.some(self.samples, self.seed), None)
        whole = {group.name: torch.arange(group.count) for group in observed.groups}
        rankings: dict[str, Tensor] = {}
        for group in observed.groups:  # all units in their order, so that fewer are the first of them
            config._alive(group, observed.redundancies[group.name], group.count, model, rankings)

        @torch.no_grad()
        def built(shares: Mapping[str, float]) -> nn.Module:
            kept, replacements = dict(whole), dict(whole)
            for group in observed.groups:
                if (share := shares.get(group.name)) is not None:
                    count = min(group.count, -(-as_count(share, group.count) // self.round_to) * self.round_to)
                    redundancy = observed.redundancies[group.name]
                    chosen = config._alive(group, redundancy, count, model, rankings)
                    kept[group.name], replacements[group.name] = chosen[:2]
            return config._candidate(model, observed, kept, replacements, True)[0]

        return [group for group in observed.groups if group.name not in observed.left], observed.left, built

    def _count(self, group: Units) -> int | None:
        share = by_layer(self.keep, group, type(self).__name__)
        if share is None:
            return group.count
        wanted = as_count(share, group.count)
        return min(group.count, -(-wanted // self.round_to) * self.round_to)


def _watched(name: str, target: Target, streams: Streams) -> Hook:
    """A hook that notes what a layer computes, and whether that is added to something."""

    def hook(layer: nn.Module, value: Any, y: Any, chunk: Chunk) -> None:
        target.add(layer, value, y, chunk)
        streams.watch(name, y)

    return hook


def _measured_on(held: Calibration | None) -> str:
    return " on the fitted samples" if held is None else f" on {len(held):,} samples that nothing was fitted to"


def _most_work_first(groups: list[Units], macs: Mapping[str, int]) -> list[Units]:
    """With the layer first that reads the units in the most multiply-adds: what it reads decides which ones stay."""
    return [
        replace(group, readers=sorted(group.readers, key=lambda reader: -macs.get(reader.name, 0))) for group in groups
    ]


def by_layer(value: Any, group: Units, who: str) -> Any:
    """A value that may be a mapping of layer names (globs) to values; None where no pattern fits."""
    if not isinstance(value, dict):
        return value
    for pattern, value_of in value.items():
        if any(fnmatch.fnmatchcase(name, pattern) for name in group.makers):
            return value_of
    return None


def unit_norms(group: Units, model: nn.Module) -> Tensor:
    """Incoming + outgoing L1 norms of the units (John 2019, 4.12), of all layers that make or read them."""
    norms = torch.zeros(group.count, dtype=torch.float64)
    for name, units in group.makers.items():
        made_by = _magnitudes(model.get_submodule(name)).sum((1, 2))
        norms.index_add_(
            0, units, made_by.repeat(len(units) // len(made_by))
        )  # a transposed one in groups has a group's
    for reader in group.readers:
        layer: Any = model.get_submodule(reader.name)
        fed = _magnitudes(layer).sum(2)
        if weight_sides(layer) == (0, 1) and not cuts_itself(layer) and (groups := getattr(layer, "groups", 1)) > 1:
            fed = fed.view(groups, -1, fed.shape[1]).sum(1).reshape(1, -1)
        norms.index_add_(0, reader.units, fed.sum(0)[reader.columns])
    return norms


def unit_biases(group: Units, model: nn.Module) -> Tensor | None:
    """The bias of each unit in the first layer that makes it; of coupled outputs, that of the first."""
    bias: Any = getattr(model.get_submodule(group.name), "bias", None)
    units = group.makers[group.name]
    each = torch.bincount(units, minlength=group.count)
    return None if bias is None else bias.detach()[units.argsort(stable=True)[each.cumsum(0) - each]].double()


def _magnitudes(layer: Any) -> Tensor:
    """How large a layer's weights are: `(out, in, taps)`; of one in groups `in` is that of a group."""
    if cuts_itself(layer):
        return weight_matrix(layer).abs().double()[..., None]
    weight = layer.weight.detach().movedim(weight_sides(layer), (0, 1))
    return weight.abs().double().flatten(2) if weight.dim() > 2 else weight.abs().double()[..., None]


def _part(group: Units, alive: Tensor) -> Units:
    """A view of the group with only these units, numbered anew."""
    if len(alive) == group.count:
        return group
    number = torch.full((group.count,), -1)
    number[alive] = torch.arange(len(alive))
    return _PartOf(group, alive, number)  # type: ignore[return-value]


class _PartOf:
    """Some units of a group: what `choose` needs of them."""

    def __init__(self, whole: Units, alive: Tensor, number: Tensor) -> None:
        self.whole, self.alive, self.number = whole, alive, number
        self.name, self.count, self.makers, self.readers = whole.name, len(alive), whole.makers, whole.readers


def whole_of(group: Any) -> tuple[Units, Tensor]:
    """The group that a part is of, and its units."""
    return (group.whole, group.alive) if isinstance(group, _PartOf) else (group, torch.arange(group.count))


def _remember(smaller: nn.Module, channels: Channels) -> None:
    """Note on each layer which of the original's outputs and inputs it has: `kept_outputs`, `kept_inputs`."""
    for name, module in smaller.named_modules():
        if name in channels.outputs:
            module.__dict__["kept_outputs"] = channels.outputs[name]
            module.__dict__["kept_inputs"] = channels.inputs[name]


def _changes(
    model: nn.Module, smaller: nn.Module, example: Calibration, groups: list[Units], kept: Mapping[str, Tensor],
    notes: Mapping[str, str],
) -> list[Change]:  # fmt: skip
    before, after = (layer_macs(m, example) for m in (model, smaller))
    by_maker = {name: group for group in groups for name in group.makers}
    changes = []
    for name, module in model.named_modules():
        new = smaller.get_submodule(name)
        sizes, new_sizes = sizes_of(module), sizes_of(new)
        if sizes is None or sizes == new_sizes:
            continue
        group = by_maker.get(name)
        note = notes[group.name] if group is not None and name == group.name else ""
        if getattr(module, "bias", True) is None and new.bias is not None:
            note = f"{note}; gains a bias".removeprefix("; ")
        old, small = (Summary.of(m)._replace(macs=macs.get(name, 0)) for m, macs in ((module, before), (new, after)))
        changes.append(Change.of(name, old, small, note))
    return changes
