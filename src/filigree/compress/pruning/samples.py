"""What a network computes on data, kept in bounded memory: activations of units, and rows of layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.calibration import Calibration
from filigree.compress.passes import Chunk, Hook, in_chunks, run_hooked
from filigree.compress.pruning.graph import trainable
from filigree.compress.pruning.matrices import SPATIAL
from filigree.convert import run_on
from filigree.modes import evaluating
from filigree.nn.resizing import TRANSPOSED, has_units
from filigree.outputs import numbers_in

ROWS = 16_384  # of a layer: samples (of convolutions and sequences: positions of samples), over all its calls
FEATURES = 4_096  # numbers that describe a unit


def drawn(total: int, most: float, seed: int) -> Tensor:
    """Sorted numbers below `total`: all of them, or `most` drawn at random."""
    most = max(1, math.ceil(most))
    if total <= most:
        return torch.arange(total)
    return torch.randint(total, (most,), generator=torch.Generator().manual_seed(seed)).sort().values


def seed_of(name: str, number: int) -> int:
    """Of a layer and a chunk: the same positions are drawn in the original and in the pruned network."""
    return (sum((i + 1) * byte for i, byte in enumerate(name.encode())) + 7919 * number) % 2**31


class Patches:
    """Where a convolution reads for each position of its output: `x` padded, and flat indices into it.

    A transposed one reads `x` with zeros between its positions, as many as its steps are long, in steps of one.
    """

    def __init__(self, layer: Any, x: Tensor) -> None:
        spans = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        if isinstance(layer, TRANSPOSED):
            padded, steps = _spread(layer, x, spans), (1,) * len(spans)
        else:
            mode = {"zeros": "constant"}.get(layer.padding_mode, layer.padding_mode)
            padded, steps = F.pad(x, tuple(layer._reversed_padding_repeated_twice), mode=mode), layer.stride
        self.padded = padded.flatten(2).transpose(1, 2)  # (samples, padded positions, channels)
        sides = padded.shape[2:]
        self.output = [(s - span) // step + 1 for s, span, step in zip(sides, spans, steps, strict=True)]
        strides = [math.prod(sides[i + 1 :]) for i in range(len(sides))]
        taps = itertools.product(*(range(0, k * d, d) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)))
        self._taps = torch.tensor([sum(t * s for t, s in zip(tap, strides, strict=True)) for tap in taps])
        starts = torch.zeros(1, dtype=torch.long)
        for count, step, stride in zip(self.output, steps, strides, strict=True):
            starts = (starts[:, None] + torch.arange(count) * step * stride).flatten()
        self._starts = starts  # of each position
        self.rows = len(x) * len(starts)

    def at(self, rows: Tensor, groups: int) -> Tensor:
        """What these outputs read, `(groups, rows, channels x taps)`."""
        sample, position = rows // len(self._starts), rows % len(self._starts)
        flat_indices = self._starts[position][:, None] + self._taps  # (rows, taps)
        read = self.padded.contiguous()[sample[:, None], flat_indices]  # (rows, taps, channels)
        return read.transpose(1, 2).reshape(len(rows), groups, -1).transpose(0, 1)

    def means(self) -> Tensor:
        """The mean of what is read at each tap, over samples and positions, `(channels, taps)`."""
        image = self.padded.mean(0)
        return torch.stack([image[self._starts + tap].mean(0) for tap in self._taps.tolist()], 1)


def _spread(layer: Any, x: Tensor, spans: Sequence[int]) -> Tensor:
    """What a transposed convolution reads: zeros between the positions of `x`, and around them."""
    sides = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], layer.stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sides)
    spread[(slice(None), slice(None), *(slice(None, None, int(step)) for step in layer.stride))] = x
    around: list[int] = []
    for span, cut, more in zip(spans, layer.padding, layer.output_padding, strict=True):
        around = [span - 1 - cut, span - 1 - cut + more, *around]  # the last side first
    return F.pad(spread, around)


def rows_read(layer: Any, x: Tensor, most: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of a layer's input as its weights read them, `(groups, rows, in_features)`, and which rows they are."""
    if isinstance(layer, SPATIAL):
        patches = Patches(layer, x)
        rows = drawn(patches.rows, most, seed)
        return patches.at(rows, layer.groups), rows
    flat = x.reshape(-1, x.shape[-1])
    rows = drawn(len(flat), most, seed)
    return flat[rows][None], rows


def row_numbers(layer: Any, x: Tensor, most: float, seed: int) -> Tensor:
    """Which rows those are."""
    total = Patches(layer, x).rows if isinstance(layer, SPATIAL) else x[..., 0].numel()
    return drawn(total, most, seed)


def rows_made(layer: Any, y: Tensor, rows: Tensor) -> Tensor:
    """These rows of its output, `(rows, out_features)`."""
    if not isinstance(layer, SPATIAL):
        return y.reshape(-1, y.shape[-1])[rows]
    positions = y[0, 0].numel()
    return y.flatten(2).transpose(1, 2)[rows // positions, rows % positions]


def channel_rows(layer: Any, x: Tensor, columns: Tensor, most: float, seed: int) -> Tensor:
    """Rows of the channels that a layer reads, `(rows, channels)`, one for each position of a sample.

    Args:
        columns: of a linear layer the columns of each channel, `(channels, positions)`.
    """
    if isinstance(layer, SPATIAL):
        parts = x.flatten(2).transpose(1, 2)  # (samples, positions, channels)
    else:
        flat = x.reshape(-1, x.shape[-1])
        if columns.shape[1] == 1:
            return flat[drawn(len(flat), most, seed)][:, columns[:, 0]]
        parts = flat[:, columns.flatten()].view(len(flat), *columns.shape).transpose(1, 2)
    rows = drawn(parts.shape[0] * parts.shape[1], most, seed)
    return parts[rows // parts.shape[1], rows % parts.shape[1]]


def calls_of(model: nn.Module, data: Calibration, names: Sequence[str]) -> dict[str, int]:
    """How often each of these modules runs on the first sample, in the order in which they first do."""
    calls: dict[str, int] = {}

    def count(name: str) -> Hook:
        def hook(*_: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    run_hooked(model, data[:1], {name: count(name) for name in names}, "calls")
    return calls | {name: 0 for name in names if name not in calls}


def unit_activations(
    model: nn.Module,
    groups: Sequence[Any],
    x: Tensor | Calibration,
    pooled: bool,
    also: dict[str, Hook] | None = None,
    returned: Callable[[Any], None] | None = None,
) -> dict[str, Tensor]:
    """What the first reader of each group reads of its units: `(units, numbers)`, by the group's name.

    A unit of a linear layer gives a number for each sample; a filter one for each position of each sample (at most
    `FEATURES`, drawn over all), or if `pooled` its mean over them.

    Args:
        also, returned: further hooks of the same pass over the data, and what sees the model's outputs.

    Raises:
        ValueError: the data do not reach a layer, or activations are not finite.
    """
    data = x if isinstance(x, Calibration) else in_chunks(model, Calibration(x))
    parts_by_group: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    readers: dict[str, list[Any]] = {}
    for group in groups:
        readers.setdefault(group.readers[0].name, []).append(group)
    weighted = [name for name, module in model.named_modules() if has_units(module)]
    calls = calls_of(model, data, weighted)
    reached = set()

    def keep(name: str) -> Hook:
        def hook(module: Any, value: Tensor, y: Any, chunk: Chunk) -> None:
            reached.add(name)
            if also and name in also:
                also[name](module, value, y, chunk)
            for group in readers.get(name, ()):
                reader = group.readers[0]
                order = reader.units.argsort(stable=True)
                columns = reader.columns[order]
                if isinstance(module, SPATIAL) and value.dim() == 2 + len(module.kernel_size):
                    part = value[:, columns].reshape(len(value), group.count, -1)  # (samples, units, positions)
                else:
                    flat = value.reshape(-1, value.shape[-1])[:, columns]
                    part = flat.view(len(flat), group.count, -1)
                part = part.mean(2) if pooled else part.transpose(1, 2).flatten(0, 1)  # (numbers, units)
                most = max(FEATURES, len(data)) * chunk.share / max(1, calls[name])
                numbers = drawn(len(part), most, seed_of(name, chunk.number))
                parts_by_group[group.name].append(part[numbers])

        return hook

    run_hooked(model, data, {name: keep(name) for name in weighted}, returned=returned)
    _check_reached(model, [name for name in weighted if name not in reached], data[:256])
    activations = {name: torch.cat(parts).T.contiguous() for name, parts in parts_by_group.items()}
    for name, features in activations.items():
        if not bool(features.isfinite().all()):
            raise ValueError(f"pruning: the activations of {name!r} are not finite on these data.")
    return activations


def _check_reached(model: nn.Module, names: list[str], data: Calibration) -> None:
    """Refuse a model of which the data reach only a part: whether the rest fits fewer units cannot be known.

    A layer that does not run may have weights that the model reads itself: then gradients reach them.
    """
    parameters = {name: list(model.get_submodule(name).parameters(recurse=False)) for name in names}
    if not any(parameters.values()):
        return
    with evaluating(model), trainable(model), torch.enable_grad():
        outputs = [y for y in numbers_in(run_on(model, data, "pruning"), "pruning") if y.requires_grad]
        output = torch.stack([y.abs().sum() for y in outputs]).sum()
        for name, own in parameters.items():
            if own and all(g is None for g in torch.autograd.grad(output, own, retain_graph=True, allow_unused=True)):
                raise ValueError(
                    f"pruning: the data do not reach {name!r}, so whether it fits fewer units is not known. Give data "
                    "that reach all layers, or take it out of the model."
                )
