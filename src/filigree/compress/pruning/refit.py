"""Compensation: what the kept units take over from those that went."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.passes import Chunk, chunks_of, first_input, shown
from filigree.compress.pruning.errors import OutputError
from filigree.compress.pruning.graph import Units
from filigree.compress.pruning.moments import MEMORY, Moments, bytes_of
from filigree.compress.pruning.samples import (
    CONVOLUTIONS,
    ROWS,
    Patches,
    channel_rows,
    row_numbers,
    rows_made,
    rows_read,
    seed_of,
)
from filigree.compress.pruning.taps import refined, rows_for
from filigree.computed_weights import why_computed
from filigree.convert import inference_context
from filigree.nn.resizing import has_units, sizes_of
from filigree.ties import why_tied

EXACT = 1_536  # columns of a convolution's matrix up to which they are refitted one by one


@dataclass(frozen=True)
class Channels:
    """What a pruned network has of the original, by layer: which of its outputs, and which of its inputs.

    Of a grouped convolution the inputs are those of its first block.
    """

    outputs: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]


def channels_of(model: nn.Module, groups: list[Units], kept: Mapping[str, Tensor]) -> Channels:
    """Which of the original's outputs and inputs each layer has without the other units."""
    outputs, inputs = {}, {}
    for name, module in model.named_modules():
        if has_units(module):
            outs, ins, *_ = sizes_of(module)  # type: ignore[misc]
            outputs[name] = torch.arange(outs)
            inputs[name] = torch.arange(ins // getattr(module, "groups", 1))
    for group in groups:
        for name, units in group.makers.items():
            outputs[name] = torch.isin(units, kept[group.name]).nonzero().squeeze(1)
        for reader in group.readers:
            gone = reader.columns[~torch.isin(reader.units, kept[group.name])]
            inputs[reader.name] = inputs[reader.name][~torch.isin(inputs[reader.name], gone)]
    return Channels(outputs, inputs)


def may_gain_biases(model: nn.Module) -> bool:
    """Whether a refit may add biases: a model that its owner saves and makes again from a configuration would lose them
    there."""
    return not any(hasattr(module, "save_pretrained") for module in model.modules())


def columns_of(layer: Any, groups: Sequence[Units], name: str) -> Tensor:
    """The columns of a dense layer's matrix that read each channel: `(channels, taps)`.

    Of a convolution all taps of a channel; of a linear layer that reads flattened filters all positions of a filter.
    """
    if isinstance(layer, CONVOLUTIONS):
        return torch.arange(layer.weight[0].numel()).view(layer.weight.shape[1], -1)
    read = [
        reader.columns[reader.units.argsort(stable=True)].view(group.count, -1)
        for group in groups
        for reader in group.readers
        if reader.name == name
    ]
    width = layer.weight.shape[1]
    if len({columns.shape[1] for columns in read}) == 1 and sum(columns.numel() for columns in read) == width:
        return torch.cat(read)
    return torch.arange(width)[:, None]


class Target:
    """What a layer of the original reads and computes, as far as its refit needs it.

    "By units" (`by_units`) the channels that it reads are regressed on those that the pruned layer reads, and what they
    fed is folded into the weights: numbers are channels x channels. What its taps need more is added by conjugate
    gradients on rows (`taps.py`), which are not kept of layers that the model calls several times. Otherwise its
    outputs are regressed on all columns of its matrix, which is exact.

    Args:
        calls: how often it runs in a chunk. times: how often the model does. Of a layer that a model calls several
            times the inputs are kept as well.
        exact: columns of a matrix whose channels have several up to which it is exact.
    """

    def __init__(self, name: str, layer: Any, groups: Sequence[Units], calls: int, times: int, exact: int) -> None:
        self.name, self.layer, self.calls, self.most = name, layer, calls, ROWS
        self.times = times
        self.rows: dict[int, list[Tensor]] = {}  # by chunk: of its channels by units, else of its outputs
        self.inputs: dict[int, list[Tensor]] = {}
        self.taps: Tensor | None = None  # the mean of each channel at each tap
        self._weight = 0
        self.by_units, self.columns, self.problem = False, torch.empty(0), why_computed(layer)
        is_sparse = hasattr(layer, "indptr")
        if self.problem:
            self.problem = f"it {self.problem}"
        elif not is_sparse and not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            self.problem = f"it is a {type(layer).__name__}"
        if self.problem:
            return
        outputs, width = (layer.out_features, layer.in_features) if is_sparse else layer.weight.flatten(1).shape
        if not is_sparse and getattr(layer, "groups", 1) == 1:
            self.columns = columns_of(layer, groups, name)
            self.by_units = (self.columns.shape[1] > 1 and width > exact) or outputs > width
        self.width = len(self.columns) if self.by_units else outputs  # numbers in a row
        self.has_taps = self.by_units and self.columns.shape[1] > 1 and calls == times
        self.tap_outputs: dict[int, list[Tensor]] = {}  # by chunk: outputs, where there are taps
        self.most_taps = rows_for(width)

    def add(self, layer: Any, value: Any, y: Any, chunk: Chunk) -> None:
        """A call of the layer in the original."""
        if self.problem:
            return
        if not isinstance(value, Tensor) or not isinstance(y, Tensor):
            self.problem = f"it is called with a {type(value).__name__}"
            return
        own = self.rows.setdefault(chunk.number, [])
        seed = seed_of(self.name, chunk.number + 1009 * len(own))
        most = self.most * chunk.share / max(1, self.calls)
        if self.by_units:
            own.append(channel_rows(layer, value, self.columns, most, seed).clone())
            self.taps, self._weight = _mean_with(self.taps, self._weight, *tap_means(layer, value, self.columns))
            if self.has_taps:
                rows = row_numbers(layer, value, self.most_taps * chunk.share / max(1, self.calls), seed)
                self.tap_outputs.setdefault(chunk.number, []).append(rows_made(layer, y, rows).clone())
        else:
            if getattr(layer, "relu", False):  # fused in: what comes before it is the target
                plain: Any = copy.copy(layer)
                plain.relu = False
                y = plain.forward(value)
            if self.calls > self.times:
                read, rows = rows_read(layer, value, most, seed)
                self.inputs.setdefault(chunk.number, []).append(read.clone())
            else:
                rows = row_numbers(layer, value, most, seed)
            own.append(rows_made(layer, y, rows).clone())


def tap_means(layer: Any, x: Tensor, columns: Tensor) -> tuple[Tensor, int]:
    """The mean of each channel at each tap, `(channels, taps)`, and over how many samples it is."""
    if isinstance(layer, CONVOLUTIONS):
        return Patches(layer, x).means().double(), len(x)
    flat = x.reshape(-1, x.shape[-1])
    return flat.double().mean(0)[columns.flatten()].view(columns.shape), len(flat)


def _mean_with(mean: Tensor | None, weight: int, more: Tensor, count: int) -> tuple[Tensor, int]:
    return (more, count) if mean is None else (mean + (more - mean) * (count / (weight + count)), weight + count)


def targets_of(
    model: nn.Module, names: Sequence[str], groups: Sequence[Units], calls: Mapping[str, int], exact: int = EXACT
) -> dict[str, Target]:
    """Targets of these layers, to be filled by a pass over the data, whose hooks their `add` are.

    Args:
        calls: how often each of them runs in a chunk, and how often the model does (`""`).

    Each keeps `ROWS` rows, or fewer where all together would need a quarter of `MEMORY`.
    """
    targets = {name: Target(name, model.get_submodule(name), groups, calls[name], calls[""], exact) for name in names}
    widths = [
        target.width * (2 if target.calls > target.times else 1) for target in targets.values() if not target.problem
    ]
    for target in targets.values():
        target.most = max(1, min(ROWS, MEMORY // 16 // max(1, sum(widths))))
    return targets


class _Reached(BaseException):
    """A chunk has come to the layer that waits for all chunks. No `Exception`: the model's own code may catch those."""


def least_squares(
    smaller: nn.Module, channels: Channels, targets: Mapping[str, Target], data: Calibration, damping: float,
    biases: bool,
) -> dict[str, str]:  # fmt: skip
    """Refit layers of a pruned network, in the order in which they run, on its own inputs.

    Of each layer `min |W x' + b - y|^2 + damping v |W - W_kept|^2` over W and b, x' what it now reads, y what the
    original computed there (pre-activations, the kept units only), v the mean variance of x'. By units `min |A f' -
    f|^2 + damping v |A - A_kept|^2`, f' the channels that it now reads, f those of the original, and `W = W_original A`
    at each tap, b such that the mean output stays. Closed form, in float64.

    All chunks run up to the layer that comes next, the last one goes on from there: what a layer computes after its
    refit is what the next ones read. Data in one chunk take one pass.

    A layer that runs several times is refitted once, on all its calls, each weighed by its rows; x' is what it read in
    the original, without the units that went: what it will read then depends on itself.

    Args:
        targets: filled with the same data. biases: whether a layer without a bias may gain one. Without, W alone is
            fitted, about zero.

    Returns:
        The layers that are left as they were, each with the reason.
    """
    left = {name: target.problem for name, target in targets.items() if target.problem}
    left |= {name: f"it {reason}" for name, reason in why_tied(smaller).items() if name in targets}
    fits = {
        name: _Fit(smaller.get_submodule(name), channels, target, damping, biases)
        for name, target in targets.items()
        if name not in left
    }
    left |= {name: fit.problem for name, fit in fits.items() if fit.problem}
    fits = {name: fit for name, fit in fits.items() if name not in left}
    for name in [name for name, fit in fits.items() if fit.target.calls > fit.target.times]:
        if problem := fits.pop(name).on_original():
            left[name] = problem
    chunks = chunks_of(data)
    seen: dict[str, set[int]] = {name: set() for name in fits}
    running: list[str] = []  # the calls of this chunk, where the model is called several times
    chunk = chunks[0]

    def before(name: str) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in fits:
                return
            fit = fits[name]
            if fit.target.times > 1:  # it reads all calls before the next layer may read one
                if running and name != running[0]:
                    return
                running.append(name)
                fit.add(first_input(args, kwargs), chunk)
                if len(running) % fit.target.times:
                    return
                seen[name].add(chunk.number)
            elif chunk.number not in seen[name]:
                seen[name].add(chunk.number)
                fit.add(first_input(args, kwargs), chunk)
            if len(seen[name]) < len(chunks):
                raise _Reached
            left.update(_solved(name, fits.pop(name)))
            if fit.target.times > 1:
                raise _Reached

        return hook

    hooks = (
        smaller.get_submodule(name).register_forward_pre_hook(before(name), with_kwargs=True) for name in list(fits)
    )
    with inference_context(smaller, hooks):
        for _ in shown(range(len(fits)), "refit", data.progress):
            waiting = len(fits)
            for chunk in chunks:
                running.clear()
                with suppress(_Reached):
                    data.call(smaller, chunk.inputs)
            if not fits:
                break
            if len(fits) == waiting:  # some chunks do not reach what comes next
                some = [name for name in fits if seen[name]][:1]
                if not some:
                    break
                left.update(_solved(some[0], fits.pop(some[0])))
    return left | dict.fromkeys(fits, "the data do not reach it")


def _solved(name: str, fit: _Fit) -> dict[str, str]:
    if fit.problem:
        return {name: fit.problem}
    fit.solve()
    return {}


class _Fit:
    """The refit of one layer of a pruned network."""

    def __init__(self, layer: Any, channels: Channels, target: Target, damping: float, biases: bool) -> None:
        self.layer, self.target, self.damping, self.problem = layer, target, damping, ""
        self.centre = biases or layer.bias is not None
        self.outputs, self.inputs = channels.outputs[target.name], channels.inputs[target.name]
        self.taps, self._weight = torch.empty(0), 0
        self.moments: list[Moments] = []
        self._calls: dict[int, int] = {}  # by chunk
        self.read: list[Tensor] = []
        self.tap_outputs: list[Tensor] = []
        if target.by_units:
            is_conv = isinstance(layer, CONVOLUTIONS)
            self.stay = self.inputs if is_conv else torch.isin(target.columns[:, 0], self.inputs).nonzero().squeeze(1)
            columns = target.columns[self.stay]
            self.columns = columns_of(layer, [], "") if is_conv else torch.searchsorted(self.inputs, columns)
            width, outputs = len(self.stay), len(target.columns)
        else:
            outputs, width = len(self.outputs), len(self.inputs)
            if isinstance(layer, CONVOLUTIONS):
                width *= layer.weight[0, 0].numel()
        if (need := bytes_of(width, outputs)) > MEMORY:
            self.problem = f"its {width:,} columns need {need / 1e9:.1f} GB"

    def add(self, value: Any, chunk: Chunk) -> None:
        """What the layer now reads of a chunk."""
        target = self.target
        rows, call = target.rows.get(chunk.number, []), self._calls.get(chunk.number, 0)
        self._calls[chunk.number] = call + 1
        if not isinstance(value, Tensor) or len(rows) != target.calls or call >= len(rows):
            self.problem = self.problem or "how often it runs depends on the data"
            return
        most = target.most * chunk.share / target.calls
        seed = seed_of(target.name, chunk.number + 1009 * call)
        if target.by_units:
            read = channel_rows(self.layer, value, self.columns, most, seed)[None]
            means = tap_means(self.layer, value, self.columns)
            self.taps, self._weight = _mean_with(self.taps if self._weight else None, self._weight, *means)
            if target.has_taps:
                most = target.most_taps * chunk.share / target.calls
                self.read.append(rows_read(self.layer, value, most, seed)[0][0])
                self.tap_outputs.append(target.tap_outputs[chunk.number][call][:, self.outputs])
        else:
            read, _ = rows_read(self.layer, value, most, seed)
        self._accumulate(read, rows[call])

    def on_original(self) -> str:
        """Refit a layer that runs several times on what it read in the original; why not, if not."""
        target = self.target
        for number in sorted(target.rows):
            for call, y in enumerate(target.rows[number]):
                if target.by_units:
                    self._accumulate(y[:, self.stay][None], y)
                else:
                    read = target.inputs[number][call]
                    taps = self.layer.weight[0, 0].numel() if isinstance(self.layer, CONVOLUTIONS) else 1
                    kept = read.view(*read.shape[:2], -1, taps)[:, :, self.inputs].flatten(2)
                    self._accumulate(kept, y)
        if not self.moments:
            return "the data do not reach it"
        if target.by_units:
            self.taps = target.taps[self.stay]  # type: ignore[index]
        self.solve()
        return ""

    def _accumulate(self, read: Tensor, y: Tensor) -> None:
        if not self.target.by_units:
            y = y[:, self.outputs]
        if read.shape[1] != len(y):
            self.problem = "it runs on another number of rows than in the original"
            return
        parts = y.chunk(len(read), 1)
        if not self.moments:
            self.moments = [
                Moments(x.shape[1], part.shape[1], self.centre) for x, part in zip(read, parts, strict=True)
            ]
        for moments, x, part in zip(self.moments, read, parts, strict=True):
            moments.add(x, part)

    def solve(self) -> None:
        """Give the layer its new weights."""
        if self.target.by_units:
            self._fold()
        elif hasattr(self.layer, "indptr"):
            self._refit_connections()
        else:
            self._refit_columns()

    def _refit_columns(self) -> None:
        weight = self.layer.weight.flatten(1)
        solved = [
            moments.solve(part.double(), self.damping)
            for moments, part in zip(self.moments, weight.chunk(len(self.moments)), strict=True)
        ]
        self.layer.weight.copy_(torch.cat(solved).view_as(self.layer.weight))
        if self.centre:
            shifts = [m.mean_y - new @ m.mean_x for m, new in zip(self.moments, solved, strict=True)]
            self._set_bias(torch.cat(shifts))

    def _fold(self) -> None:
        (moments,), target = self.moments, self.target
        start = torch.zeros(len(target.columns), len(self.stay), dtype=torch.float64)
        start[self.stay, torch.arange(len(self.stay))] = 1
        feeds = moments.solve(start, self.damping)  # (channels, kept channels)
        original = target.layer.weight.detach().flatten(1)[self.outputs][:, target.columns]  # (out, channels, taps)
        new = torch.einsum("oct,ck->okt", original, feeds.to(original.dtype))
        weight = torch.empty_like(self.layer.weight).flatten(1)
        weight[:, self.columns.flatten()] = new.flatten(1)
        self.layer.weight.copy_(weight.view_as(self.layer.weight))
        if self.centre:
            old = target.layer.bias
            means = [
                torch.einsum("oct,ct->o", w.double(), taps) for w, taps in ((original, target.taps), (new, self.taps))
            ]
            self._set_bias(means[0] - means[1] + (0 if old is None else old.detach()[self.outputs].double()))
        if self.read and (more := refined(self.read, self.tap_outputs, weight, self.damping, self.centre)) is not None:
            self.layer.weight.copy_(more[0].reshape(self.layer.weight.shape))
            if self.centre:
                self._set_bias(more[1])

    def _refit_connections(self) -> None:
        """Of each unit on its own connections."""
        (moments,), layer = self.moments, self.layer
        own, right = moments.own(), moments.cross()
        ridge = self.damping * float(own.diagonal().mean().clamp(min=1e-12))
        own.diagonal().add_(ridge)
        shift, columns = moments.mean_y.clone(), layer.indices.long()
        for row, (first, last) in enumerate(pairwise(layer.indptr.tolist())):
            read = columns[first:last]
            if len(read):
                old = layer.values[first:last].double()
                solved = torch.linalg.solve(own[read][:, read], right[read, row] + ridge * old)
                layer.values[first:last] = solved.to(layer.values.dtype)
                shift[row] -= solved @ moments.mean_x[read]
        if self.centre:
            self._set_bias(shift)

    def _set_bias(self, shift: Tensor) -> None:
        like = self.layer.values if hasattr(self.layer, "indptr") else self.layer.weight
        if self.layer.bias is None:
            self.layer.bias = nn.Parameter(shift.to(like.dtype))
        else:
            self.layer.bias.copy_(shift)


def better(
    who: str, how: str, plain: nn.Module, compensated: nn.Module, error: OutputError, unfit: Mapping[str, str]
) -> tuple[nn.Module, str]:
    """The compensated network and a note of its error, of that without, and of the layers that are not refitted.

    A warning tells where compensation makes the outputs worse; least squares is then left out.
    """
    before, after = (error(network) for network in (plain, compensated))
    note = f"error {after:.3g} with {how}, {before:.3g} without{error.where}"
    note += "".join(f"; not refitted: {name}, since {reason}" for name, reason in unfit.items())
    if after <= before:
        return compensated, note
    kept = how == "correlation"
    if after > before * 1.01 + 1e-3:  # more than rounding
        warnings.warn(
            f"{who}: compensation by {how} makes the outputs worse (relative error {after:.3g}, without {before:.3g})"
            f"{'' if kept else ', so it is left out'}.",
            stacklevel=2,
        )
    return (compensated, note) if kept else (plain, f"{note}; left out")
