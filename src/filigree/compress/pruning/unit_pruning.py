"""What all pruning of units shares: from the units that are kept to a smaller network that computes nearly the same."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from filigree.compress.compression import Compression
from filigree.compress.pruning.budget import Budget, Counts, MaxError, allocate, output_error, outputs_on
from filigree.compress.pruning.clusters import dead
from filigree.compress.pruning.graph import Units, layer_macs
from filigree.compress.pruning.proof import refuse, wrong_groups
from filigree.compress.pruning.refit import (
    Channels,
    better,
    channels_of,
    correlation,
    least_squares,
    may_gain_biases,
    original_outputs,
)
from filigree.compress.pruning.removable import removable
from filigree.compress.pruning.removal import copy_of, pruned, take_over
from filigree.compress.pruning.samples import unit_activations
from filigree.compress.pruning.subclusters import as_count
from filigree.computed_weights import why_computed
from filigree.config import config
from filigree.convert import Change, Conversion
from filigree.measure.timing import inference, time_interleaved
from filigree.modes import evaluating
from filigree.nn.integer.empty_integer_layers import weight_matrix
from filigree.nn.resizing import can_be_refitted, has_units, sizes_of
from filigree.summary import Summary, says

Share = Annotated[float, pydantic.Field(gt=0, le=1)] | Annotated[int, pydantic.Field(ge=1)]

Build = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], bool], nn.Module]  # kept, replacements, compensated?


@config
class UnitPruning(Compression):
    """Base of the configs that take units (of linear layers) and filters (of convolutions) out of a trained network.

    The network really becomes smaller: tensors shrink, and torch-pruning's dependency graph says what goes along (the
    next layer's inputs, batch norms, the other terms of a residual sum, blocks of a flattened filter). Needs a batch of
    inputs. Before any refit the smaller network must compute what the whole one does when nobody reads the units that
    go, on the data and on random inputs, in all its outputs: else they are refused by name and the model is as it was
    (or, where no layer is named, they are left whole, and the report says so).

    Subclasses say which units stay: `choose`.
    """

    keeps_ties = True  # those of the same size: units go on both sides

    keep: Share | dict[str, Share] | MaxError | Budget = 0.5
    compensate: Literal["least_squares", "correlation"] | None = "least_squares"
    damping: Annotated[float, pydantic.Field(gt=0)] = 0.01
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
        return has_units(module)

    def choose(self, group: Units, features: Tensor, count: int | None, model: nn.Module) -> tuple[Tensor, Tensor, str]:
        """The kept units (sorted), the replacement of each unit, and what the report says of it.

        Args:
            features: of the units that are not dead `(units, numbers)`. count: how many may stay, None: the method's
            own.
        """
        raise NotImplementedError

    @torch.no_grad()
    def compress(
        self, model: nn.Module, names: list[str], data: Tensor | None
    ) -> tuple[list[Change], list[tuple[Conversion, list[str]]]]:
        who = type(self).__name__
        if data is None:
            raise ValueError(f"{who}: a batch of inputs is needed: fg.compress_(model, config, data).")
        if len(data) < 2:
            raise ValueError(f"{who}: at least two samples are needed. Got {len(data)}.")
        for name, module in model.named_modules():
            if says(module) and (reason := module.why_not_prunable()):
                raise ValueError(f"{who}: {name!r} {reason}. Prune before.")
        x = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(self.seed))[: self.samples]]
        every = len(names) == sum(self.accepts(module) and not why_computed(module) for module in model.modules())
        groups, left = removable(model, names, x[:8], who, every)
        features = unit_activations(model, groups, x, self.features == "pooled")
        y = outputs_on(model, x) if self.compensate else []
        weighted = [name for name, m in model.named_modules() if can_be_refitted(m)]
        targets = original_outputs(model, weighted, x) if self.compensate == "least_squares" else {}
        biases = may_gain_biases(model)

        def build(
            kept: Mapping[str, Tensor], replacements: Mapping[str, Tensor], compensate: bool
        ) -> tuple[nn.Module, str]:
            smaller = pruned(model, groups, kept)
            if not (compensate and self.compensate):
                return smaller, ""
            if self.compensate == "least_squares":
                compensated = copy_of(smaller)
                channels = channels_of(model, groups, kept)
                unfit = least_squares(compensated, channels, targets, x, self.damping, biases)
            else:
                source = copy_of(model)
                unfit = correlation(source, groups, features, replacements, biases)
                compensated = pruned(source, groups, kept)
            return better(who, self.compensate, smaller, compensated, x, y, unfit)

        kept, replacements, notes = self._choices(model, groups, features, x, lambda *args: build(*args)[0])
        while wrong := wrong_groups(model, groups, kept, x[:8]):
            if not every or left.keys() >= wrong.keys():
                refuse(wrong, who)
            left |= wrong
            for group in groups:
                if group.name in wrong:
                    kept[group.name] = replacements[group.name] = torch.arange(group.count)
        smaller, outcome = build(kept, replacements, True)
        for group in groups:
            own = output_error(group, features[group.name], kept[group.name], model)
            notes[group.name] += f"; own error {own:.1%}"
        changes = _changes(model, smaller, x[:1], groups, kept, notes)
        changes += [Change.of(name, None, None, f"left whole: {reason}") for name, reason in left.items()]
        if outcome:
            changes.append(Change.of("outputs", None, None, outcome))
        if self.measure:
            changes.append(Change.of("latency", None, None, _latencies(model, smaller, x)))
        _remember(smaller, channels_of(model, groups, kept))
        take_over(model, smaller)
        return changes, []

    def _choices(
        self, model: nn.Module, groups: list[Units], features: Mapping[str, Tensor], x: Tensor, build: Build
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
        choices: dict[tuple[str, int | None], tuple[Tensor, Tensor, str]] = {}

        def chosen(group: Units, count: int | None) -> tuple[Tensor, Tensor, str]:
            key = group.name, count
            if key not in choices:
                choices[key] = self._alive(group, features[group.name], count, model)
            return choices[key]

        if isinstance(self.keep, Budget | MaxError):

            def built(counts: Counts, compensate: bool) -> nn.Module:
                choice_of = {group.name: chosen(group, counts[group.name]) for group in groups}
                kept = {name: choice[0] for name, choice in choice_of.items()}
                return build(kept, {name: choice[1] for name, choice in choice_of.items()}, compensate)

            counts = allocate(self.keep, model, groups, features, chosen, built, x, self.round_to)
        else:
            counts = {group.name: self._count(group) for group in groups}
        kept, replacements, notes = {}, {}, {}
        for group in groups:
            kept[group.name], replacements[group.name], notes[group.name] = chosen(group, counts[group.name])
        return kept, replacements, notes

    def _alive(self, group: Units, features: Tensor, count: int | None, model: nn.Module) -> tuple[Tensor, Tensor, str]:
        """`choose` among the units that are not dead; the dead ones go first."""
        gone = dead(features)
        alive = (~gone).nonzero().squeeze(1)
        if not len(alive):
            alive = torch.arange(1)
        f = features[alive]
        if self.normalize:
            f = f / f.norm(dim=1, keepdim=True).clamp(min=1e-30)
        few, replacement_of, note = self.choose(_part(group, alive), f, count, model)
        kept = alive[few]
        replacements = kept[torch.zeros(group.count, dtype=torch.long)]  # of a dead unit any will do: its slope is 0
        replacements[alive] = alive[replacement_of]
        died = int(gone.sum())
        return (
            kept,
            replacements,
            f"{group.count} units" + (f", {died} dead" if died else "") + (f"; {note}" if note else ""),
        )

    def _count(self, group: Units) -> int | None:
        share = by_layer(self.keep, group, type(self).__name__)
        if share is None:
            return group.count
        wanted = as_count(share, group.count)
        return min(group.count, -(-wanted // self.round_to) * self.round_to)


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
        incoming = weight_matrix(model.get_submodule(name)).abs().sum(1).double()
        norms.index_add_(0, units, incoming)
    for reader in group.readers:
        weight = _by_input(model.get_submodule(reader.name)).abs().double()
        fed = weight.sum(0) if weight.dim() == 2 else weight.sum((0, 2))
        norms.index_add_(0, reader.units, fed[reader.columns])
    return norms


def unit_biases(group: Units, model: nn.Module) -> Tensor | None:
    """The bias of each unit in the first layer that makes it; of coupled outputs, that of the first."""
    bias: Any = getattr(model.get_submodule(group.name), "bias", None)
    units = group.makers[group.name]
    each = torch.bincount(units, minlength=group.count)
    return None if bias is None else bias.detach()[units.argsort(stable=True)[each.cumsum(0) - each]].double()


def _by_input(layer: Any) -> Tensor:
    """The weight as a matrix, that of a convolution as `(out, in, taps)`."""
    if not isinstance(layer, nn.Conv2d):
        return weight_matrix(layer)
    weight = layer.weight.detach().flatten(2)
    if layer.groups > 1:  # as if dense: each input is read by its group only
        rows = weight.abs().sum(2)
        return rows.view(layer.groups, -1, rows.shape[1]).sum(1).reshape(1, -1)
    return weight


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


def _latencies(model: nn.Module, smaller: nn.Module, x: Tensor) -> str:
    """How long both take here, in turns, for one sample and for 128."""
    parts = []
    for batch in (1, 128):
        inputs = x[torch.arange(batch) % len(x)]
        with evaluating(model), evaluating(smaller):
            works = [inference(network, inputs) for network in (model, smaller)]
            before, after = (timing.median for timing in time_interleaved(works, seconds=0.05))
        verdict = f"{before / after:.1f}x" if after < 0.98 * before else "not faster"
        parts.append(f"batch {batch}: {before:.3g} -> {after:.3g} ms ({verdict})")
    return "; ".join(parts)


def _changes(
    model: nn.Module, smaller: nn.Module, example: Tensor, groups: list[Units], kept: Mapping[str, Tensor],
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
