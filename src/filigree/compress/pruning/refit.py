"""Compensation: what the kept units take over from those that went."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
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
from filigree.compress.pruning.matrices import SPATIAL, bias_of, matrix_of, taps_of, write_matrix_
from filigree.compress.pruning.moments import MEMORY, Moments, bytes_of
from filigree.compress.pruning.regression import FEW, Regression
from filigree.compress.pruning.samples import channel_rows, rows_made, rows_read, seed_of
from filigree.compress.pruning.streams import Streams
from filigree.compress.pruning.taps import refined
from filigree.compress.pruning.targets import Target, columns_of, mean_with, tap_means
from filigree.convert import inference_context
from filigree.nn.resizing import has_units, sizes_of
from filigree.ties import why_tied


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

    Of a layer whose output the model adds to something, a residual stream, y is the original's sum without what the
    pruned network has there: the layer makes up for what the layers before it have not restored of the stream.

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
            elif fit.target.is_added:  # what it is added to is known after it
                fit.value = first_input(args, kwargs)
                return
            elif chunk.number not in seen[name]:
                seen[name].add(chunk.number)
                fit.add(first_input(args, kwargs), chunk)
            if len(seen[name]) < len(chunks):
                raise _Reached
            left.update(_solved(name, fits.pop(name)))
            if fit.target.times > 1:
                raise _Reached

        return hook

    def added(name: str, stream: Tensor) -> Tensor | None:
        """How much the sum changes by the refit of a layer whose output has just been added to a stream."""
        if name not in fits or not fits[name].target.is_added:
            return None
        fit = fits[name]
        if chunk.number not in seen[name]:
            seen[name].add(chunk.number)
            fit.add(fit.value, chunk, stream)
        if len(seen[name]) < len(chunks):
            raise _Reached
        y = fit.layer.forward(fit.value)
        left.update(_solved(name, fits.pop(name)))
        change: Tensor = fit.layer.forward(fit.value) - y
        return change

    streams = Streams(added)
    hooks = itertools.chain(
        (smaller.get_submodule(name).register_forward_pre_hook(before(name), with_kwargs=True) for name in list(fits)),
        (
            smaller.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: streams.watch(name, y))
            for name in [name for name, fit in fits.items() if fit.target.is_added]
        ),
    )
    with inference_context(smaller, hooks), streams:
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
        self.value: Any = None  # what it reads now, until that is added
        self.regressions: list[Regression] = []
        self._calls: dict[int, int] = {}  # by chunk
        self.taps_read: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by chunk: what its taps read, and the outputs
        if target.by_units:
            is_conv = isinstance(layer, SPATIAL)
            self.stay = self.inputs if is_conv else torch.isin(target.columns[:, 0], self.inputs).nonzero().squeeze(1)
            columns = target.columns[self.stay]
            self.columns = columns_of(layer, [], "") if is_conv else torch.searchsorted(self.inputs, columns)
            width, outputs = len(self.stay), len(target.columns)
        else:
            outputs, width = len(self.outputs), len(self.inputs)
            width *= 1 if hasattr(layer, "indptr") else taps_of(layer)
        self.few = sum(len(y) for calls in target.rows.values() for y in calls) < FEW * width
        if (need := bytes_of(width, outputs)) > MEMORY:
            self.problem = f"its {width:,} columns need {need / 1e9:.1f} GB"

    def add(self, value: Any, chunk: Chunk, stream: Tensor | None = None) -> None:
        """What the layer now reads of a chunk, and what its output is added to."""
        target = self.target
        rows, call = target.rows.get(chunk.number, []), self._calls.get(chunk.number, 0)
        self._calls[chunk.number] = call + 1
        if not isinstance(value, Tensor) or len(rows) != target.calls or call >= len(rows):
            self.problem = self.problem or "how often it runs depends on the data"
            return
        most = target.most * chunk.share / target.calls
        seed, there = seed_of(target.name, chunk.number + 1009 * call), None
        if target.by_units:
            read = channel_rows(self.layer, value, self.columns, most, seed)[None]
            means = tap_means(self.layer, value, self.columns)
            self.taps, self._weight = mean_with(self.taps if self._weight else None, self._weight, *means)
            if target.has_taps:
                most = target.most_taps * chunk.share / target.calls
                outputs = target.tap_outputs[chunk.number][call][:, self.outputs]
                read_by_taps = rows_read(self.layer, value, most, seed)[0][0]
                self.taps_read.setdefault(chunk.number, []).append((read_by_taps, outputs))
        else:
            read, numbers = rows_read(self.layer, value, most, seed)
            if stream is not None:
                there = rows_made(self.layer, stream, numbers)
        self._accumulate(read, rows[call], chunk, there)

    def on_original(self) -> str:
        """Refit a layer that runs several times on what it read in the original; why not, if not."""
        target = self.target
        for number in sorted(target.rows):
            for call, y in enumerate(target.rows[number]):
                if target.by_units:
                    self._accumulate(y[:, self.stay][None], y, target.chunks[number])
                else:
                    read = target.inputs[number][call]
                    taps = 1 if hasattr(self.layer, "indptr") else taps_of(self.layer)
                    kept = read.view(*read.shape[:2], -1, taps)[:, :, self.inputs].flatten(2)
                    self._accumulate(kept, y, target.chunks[number])
        if not self.regressions:
            return "the data do not reach it"
        if target.by_units:
            self.taps = target.taps[self.stay]  # type: ignore[index]
        self.solve()
        return ""

    def _accumulate(self, read: Tensor, y: Tensor, chunk: Chunk, there: Tensor | None = None) -> None:
        if not self.target.by_units:
            y = y[:, self.outputs]
        if read.shape[1] != len(y):
            self.problem = "it runs on another number of rows than in the original"
            return
        y = y if there is None else y - there
        parts = y.chunk(len(read), 1)
        if not self.regressions:
            self.regressions = [
                Regression(x.shape[1], part.shape[1], self.centre) for x, part in zip(read, parts, strict=True)
            ]
        held = chunk.held(len(y)) if self.few else 0
        for regression, x, part in zip(self.regressions, read, parts, strict=True):
            regression.add(x, part, held)

    def solve(self) -> None:
        """Give the layer its new weights."""
        if self.target.by_units:
            self._fold()
        elif hasattr(self.layer, "indptr"):
            self._refit_connections()
        else:
            self._refit_columns()

    def _refit_columns(self) -> None:
        """Of each of its groups by itself."""
        groups = len(self.regressions)
        matrix, shift = matrix_of(self.layer).double(), bias_of(self.layer, len(self.outputs))
        for regression, weight, b in zip(self.regressions, matrix.chunk(groups), shift.chunk(groups), strict=True):
            if (fit := regression.solve(weight.clone(), b if self.centre else None, self.damping)) is not None:
                weight.copy_(fit[0])
                b.copy_(b if fit[1] is None else fit[1])
        write_matrix_(self.layer, matrix)
        self._set_bias(shift)

    def _fold(self) -> None:
        (regression,), target = self.regressions, self.target
        start = torch.zeros(len(target.columns), len(self.stay), dtype=torch.float64)
        start[self.stay, torch.arange(len(self.stay))] = 1
        original = matrix_of(target.layer)[self.outputs][:, target.columns]  # (out, channels, taps)
        shift, weight = bias_of(self.layer, len(self.outputs)), matrix_of(self.layer).clone()
        fed = original.transpose(0, 1).flatten(1)
        fit = regression.solve(start, None, self.damping, (fed @ fed.T).double())
        if fit is not None:
            new = torch.einsum("oct,ck->okt", original, fit[0].to(original.dtype))  # by the channels that it reads
            weight[:, self.columns.flatten()] = new.flatten(1)
            if self.centre:
                means = [
                    torch.einsum("oct,ct->o", w.double(), taps)
                    for w, taps in ((original, target.taps), (new, self.taps))
                ]
                shift = means[0] - means[1] + bias_of(target.layer, int(self.outputs.max()) + 1)[self.outputs]
        rows = [pair for number in sorted(self.taps_read) for pair in self.taps_read[number]]  # the last samples last
        read, outputs = [x for x, _ in rows], [y for _, y in rows]
        if rows and (more := refined(read, outputs, weight, self.damping, self.centre)) is not None:
            weight, shift = more[0], more[1].double()
        write_matrix_(self.layer, weight)
        self._set_bias(shift)

    def _refit_connections(self) -> None:
        """Of each unit on its own connections."""
        (regression,), layer = self.regressions, self.layer
        columns, pointers = layer.indices.long(), layer.indptr.tolist()
        rows = torch.repeat_interleave(torch.arange(len(pointers) - 1), layer.indptr.diff().long())
        start = torch.zeros(len(self.outputs), len(self.inputs), dtype=torch.float64)
        start[rows, columns] = layer.values.double()

        def solved(moments: Moments, damping: float) -> Tensor:
            own, right = moments.own(), moments.cross()
            ridge = damping * float(own.diagonal().mean().clamp(min=1e-12))
            own.diagonal().add_(ridge)
            weight = torch.zeros_like(start)
            for row, (first, last) in enumerate(pairwise(pointers)):
                if len(read := columns[first:last]):
                    weight[row, read] = torch.linalg.solve(
                        own[read][:, read], right[read, row] + ridge * start[row, read]
                    )
            return weight

        shift = bias_of(self.layer, len(self.outputs))
        fit = regression.solve(start, shift if self.centre else None, self.damping, solved=solved)
        if fit is not None:
            layer.values.copy_(fit[0][rows, columns])
            self._set_bias(shift if fit[1] is None else fit[1])

    def _set_bias(self, shift: Tensor) -> None:
        if not self.centre or (self.layer.bias is None and not shift.any()):
            return
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
