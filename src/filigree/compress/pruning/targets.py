"""What layers of a network read and compute, as far as their refit in a smaller one needs it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filigree.compress.passes import Chunk
from filigree.compress.pruning.graph import Units
from filigree.compress.pruning.matrices import SPATIAL, channels_in, matrix_of, taps_of
from filigree.compress.pruning.moments import MEMORY
from filigree.compress.pruning.samples import (
    ROWS,
    Patches,
    channel_rows,
    row_numbers,
    rows_made,
    rows_read,
    seed_of,
)
from filigree.compress.pruning.taps import rows_for
from filigree.computed_weights import why_computed
from filigree.nn.resizing import TRANSPOSED
from filigree.ties import why_tied

EXACT = 1_536  # columns of a convolution's matrix up to which they are refitted one by one


def columns_of(layer: Any, groups: Sequence[Units], name: str) -> Tensor:
    """The columns of a dense layer's matrix that read each channel: `(channels, taps)`.

    Of a convolution all taps of a channel; of a linear layer that reads flattened filters all positions of a filter.
    """
    if isinstance(layer, SPATIAL):
        return torch.arange(channels_in(layer) * taps_of(layer)).view(channels_in(layer), -1)
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

    Of a layer whose outputs the model adds to something (`streams.py`), `with_streams` turns its rows into those of
    the sum, so that it may make up for what has been lost of the stream before it; `is_added` tells that.

    Args:
        calls: how often it runs in a chunk. times: how often the model does. Of a layer that a model calls several
            times the inputs are kept as well.
        exact: columns of a matrix whose channels have several up to which it is exact.
    """

    def __init__(self, name: str, layer: Any, groups: Sequence[Units], calls: int, times: int, exact: int) -> None:
        self.name, self.layer, self.calls, self.most = name, layer, calls, ROWS
        self.times = times
        self.chunks: dict[int, Chunk] = {}
        self.rows: dict[int, list[Tensor]] = {}  # by chunk: of its channels by units, else of its outputs
        self.inputs: dict[int, list[Tensor]] = {}
        self.taps: Tensor | None = None  # the mean of each channel at each tap
        self._weight = 0
        self.by_units, self.columns, self.problem = False, torch.empty(0), why_computed(layer)
        self.is_added = False
        self._streams: list[tuple[Tensor, Tensor]] = []  # rows, and those of what they are added to
        self._has_relu = bool(getattr(layer, "relu", False))
        is_sparse = hasattr(layer, "indptr")
        if self.problem:
            self.problem = f"it {self.problem}"
        elif not is_sparse and not isinstance(layer, (nn.Linear, *SPATIAL)):
            self.problem = f"it is a {type(layer).__name__}"
        if self.problem:
            return
        outputs, width = (layer.out_features, layer.in_features) if is_sparse else matrix_of(layer).shape
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
        if isinstance(layer, TRANSPOSED) and list(y.shape[2:]) != Patches(layer, value).output:
            self.problem = "it is called with the size of its outputs"
            return
        self.chunks[chunk.number] = chunk
        own = self.rows.setdefault(chunk.number, [])
        seed = seed_of(self.name, chunk.number + 1009 * len(own))
        most = self.most * chunk.share / max(1, self.calls)
        if self.by_units:
            own.append(channel_rows(layer, value, self.columns, most, seed).clone())
            self.taps, self._weight = mean_with(self.taps, self._weight, *tap_means(layer, value, self.columns))
            if self.has_taps:
                rows = row_numbers(layer, value, self.most_taps * chunk.share / max(1, self.calls), seed)
                self.tap_outputs.setdefault(chunk.number, []).append(rows_made(layer, y, rows).clone())
        else:
            if self._has_relu:  # fused in: what comes before it is the target
                plain: Any = copy.copy(layer)
                plain.relu = False
                y = plain.forward(value)
            if self.calls > self.times:
                read, rows = rows_read(layer, value, most, seed)
                self.inputs.setdefault(chunk.number, []).append(read.clone())
            else:
                rows = row_numbers(layer, value, most, seed)
            own.append(rows_made(layer, y, rows).clone())
            self._last = own[-1], rows

    def add_stream(self, stream: Tensor) -> None:
        """What the outputs of the last call are added to."""
        if not self.problem and not self.by_units and self.calls == self.times == 1 and not self._has_relu:
            own, rows = self._last
            self._streams.append((own, rows_made(self.layer, stream, rows).clone()))

    def with_streams(self) -> None:
        """From now on its rows are those of the sums."""
        self.is_added = bool(self._streams)
        while self._streams:
            own, stream = self._streams.pop()
            own += stream


def tap_means(layer: Any, x: Tensor, columns: Tensor) -> tuple[Tensor, int]:
    """The mean of each channel at each tap, `(channels, taps)`, and over how many samples it is."""
    if isinstance(layer, SPATIAL):
        return Patches(layer, x).means().double(), len(x)
    flat = x.reshape(-1, x.shape[-1])
    return flat.double().mean(0)[columns.flatten()].view(columns.shape), len(flat)


def mean_with(mean: Tensor | None, weight: int, more: Tensor, count: int) -> tuple[Tensor, int]:
    return (more, count) if mean is None else (mean + (more - mean) * (count / (weight + count)), weight + count)


def mixing(model: nn.Module) -> list[str]:
    """Layers each of whose outputs reads all inputs: what they read may make up for what others have lost before.

    Not those in groups: what is missing in a channel, its own taps can hardly restore, and what they would say instead
    of it makes later layers worse.
    """
    tied = why_tied(model)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, *SPATIAL)) and getattr(module, "groups", 1) == 1
        and name not in tied and not why_computed(module)
    ]  # fmt: skip


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
