"""A network for inference as one call of a compiled kernel: steps on float32 images, and how their weights are packed.

Each step reads and writes numbers at positions that tables of int32 give (`kernels/inference.cpp`), so that layouts,
padding and flattening cost nothing. Weights are packed in panels of 16 outputs, in one of the `CODINGS`.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from filigree.ops._load import kernels
from filigree.ops.addresses import address

PANEL, WIDTH = 16, 4
CODINGS = ("floats", "bytes", "bitmap", "rows", "tiles")
"""How a weight is stored: dense float32; int8, with a scale for each output; the nonzeros with a mask for each input;
the nonzeros by rows with columns of 16 bits, for few vectors of inputs and for many."""

GATHER, MULTIPLY, MAXIMUM, MEAN, ADD, LSTM, GRU = range(7)


def padded(count: int) -> int:
    """The next multiple of a panel."""
    return -(-count // PANEL) * PANEL


class Finishing(NamedTuple):
    """What becomes of sums, by output: `factor * relu(scale * sum + bias) + shift`.

    Below zero ReLU is `slope` times the number, where that is given. None: left out.
    """

    scale: Tensor | None = None
    bias: Tensor | None = None
    slope: Tensor | None = None
    factor: Tensor | None = None
    shift: Tensor | None = None
    relu: bool = False

    def packed(self, outputs: int) -> Finishing:
        """Padded with zeros to whole panels."""
        parts: list[Any] = [
            None if part is None else _filled(part.float().expand(outputs), padded(outputs)) for part in self[:5]
        ]
        return Finishing(parts[0], parts[1], parts[2], parts[3], parts[4], self.relu)

    def plain(self) -> tuple[Any, ...]:
        return (*(address(part) for part in self[:5]), self.relu)


class PanelWeight(NamedTuple):
    """A weight `(outputs, depth)` as the kernel reads it."""

    coding: str
    depth: int
    panels: int
    values: Tensor
    masks: Tensor | None
    starts: Tensor | None
    runs: Tensor  # (runs, 2) int32: where neighbours among the inputs begin, and how many they are

    def plain(self) -> tuple[Any, ...]:
        return (
            CODINGS.index(self.coding), self.depth, self.panels, self.values.data_ptr(), address(self.masks),
            address(self.starts), self.runs.data_ptr(), len(self.runs),
        )  # fmt: skip

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self[3:6] if isinstance(part, Tensor))


def pack(coding: str, weight: Tensor, positions: Tensor) -> PanelWeight:
    """Pack a weight `(outputs, depth)`, float32 or (for "bytes") int8.

    Args:
        positions: `(depth,)`, distinct: where each input lies from the first one that is read. For "rows" they, for
            "tiles" their number, must be below 65,536.
    """
    outputs, depth = weight.shape
    order = torch.argsort(positions)
    positions, weight = positions[order], weight[:, order]
    panels = padded(outputs) // PANEL
    runs = _runs(positions)
    if coding in ("rows", "tiles"):
        row, column = weight.nonzero(as_tuple=True)
        starts = torch.zeros(panels * PANEL + 1, dtype=torch.int64)
        starts[1:] = torch.bincount(row, minlength=panels * PANEL).cumsum(0)
        lies = column if coding == "tiles" else positions[column]
        columns = torch.from_numpy(lies.numpy().astype(np.uint16))
        values = _aligned([weight[row, column].float()], torch.float32)
        return PanelWeight(coding, depth, panels, values, _aligned([columns], torch.uint16), starts, runs)
    whole = weight.new_zeros(panels * PANEL, depth)
    whole[:outputs] = weight
    blocks = whole.view(panels, PANEL, depth).split(WIDTH)
    streams = [block.permute(2, 0, 1).contiguous() for block in blocks]  # (depth, panels of the block, 16)
    if coding != "bitmap":
        kind = torch.int8 if coding == "bytes" else torch.float32
        return PanelWeight(coding, depth, panels, _aligned([s.to(kind) for s in streams], kind), None, None, runs)
    bits = (1 << np.arange(PANEL)).astype(np.uint32)
    masks = [((s != 0).numpy() * bits).sum(-1).astype(np.uint16).reshape(-1) for s in streams]
    kept = [s[s != 0] for s in streams]
    starts = torch.tensor([0, *(len(k) for k in kept)]).cumsum(0)[:-1]
    values = _aligned([*kept, torch.zeros(PANEL)], torch.float32)  # whole vectors are read
    stored = _aligned([torch.from_numpy(mask) for mask in masks], torch.uint16)
    return PanelWeight(coding, depth, panels, values, stored, starts, runs)


def unpack(weight: PanelWeight, outputs: int) -> Tensor:
    """The dense weight of the order of `positions` sorted, for comparison."""
    panels, depth = weight.panels, weight.depth
    out = torch.zeros(panels * PANEL, depth)
    if weight.coding in ("rows", "tiles"):
        assert weight.starts is not None
        assert weight.masks is not None
        columns = torch.from_numpy(weight.masks.numpy().astype(np.int64))
        if weight.coding == "rows":
            columns = torch.searchsorted(torch.tensor(_positions(weight.runs)), columns)
        row = torch.repeat_interleave(torch.arange(panels * PANEL), weight.starts.diff())
        out[row, columns] = weight.values
        return out[:outputs]
    first = 0
    used = 0
    for begin in range(0, panels, WIDTH):
        wide = min(WIDTH, panels - begin)
        count = depth * wide * PANEL
        if weight.masks is None:
            stream = weight.values[first : first + count].float()
        else:
            words = weight.masks[begin * depth : (begin + wide) * depth].numpy().astype(np.int64)
            mask = torch.from_numpy((words[:, None] >> np.arange(PANEL) & 1).astype(bool)).reshape(-1)
            stream = torch.zeros(count)
            stream[mask] = weight.values[used : used + int(mask.sum())]
            used += int(mask.sum())
        first += count
        block = stream.view(depth, wide, PANEL).permute(1, 2, 0).reshape(-1, depth)
        out[begin * PANEL : begin * PANEL + len(block)] = block
    return out[:outputs]


@dataclass(frozen=True)
class Step:
    """A step of a program; `source`, `other` and `target` are numbers of its spans."""

    kind: int
    source: int
    target: int
    points: int
    reads: Tensor
    writes: Tensor | None = None
    other: int = 0
    others: Tensor | None = None
    taps: int = 1
    channels: int = 0
    clear: bool = False
    weight: PanelWeight | None = None
    finish: Finishing = field(default_factory=Finishing)
    work: int = 0

    def plain(self) -> tuple[Any, ...]:
        weight = (0, 0, 0, 0, 0, 0, 0, 0) if self.weight is None else self.weight.plain()
        return (
            self.kind, self.source, self.other, self.target, self.points, self.taps, self.channels,
            self.reads.data_ptr(), address(self.others), address(self.writes), self.clear, weight, self.finish.plain(),
        )  # fmt: skip


@dataclass(frozen=True)
class Span:
    """Numbers of each image: of a tensor that is given, or `offset` numbers into the scratch memory."""

    size: int
    offset: int | None = None


class Steps:
    """Steps ready to be run: `run(inputs, outputs)` fills the tensors of the spans that are not scratch memory.

    Those come first, the inputs before the outputs. Nothing here changes after construction: copies share it.
    """

    def __init__(self, spans: list[Span], steps: list[Step], chunk: int) -> None:
        self.spans, self.steps, self.chunk = spans, steps, chunk
        self.given = [span.size for span in spans if span.offset is None]
        self.numbers = max((span.offset + span.size for span in spans if span.offset is not None), default=0)
        self.work = sum(step.work for step in steps)
        self._inner = [(0, span.offset, span.size) for span in spans if span.offset is not None]
        self._plain = [step.plain() for step in steps]

    def run(self, tensors: list[Tensor], images: int) -> None:
        """`tensors`: contiguous float32, of `images` times as many numbers as their spans."""
        given = [(t.data_ptr(), 0, size) for t, size in zip(tensors, self.given, strict=True)]
        kernels.inference([*given, *self._inner], self._plain, images, self.chunk, self.numbers, self.work)

    def __deepcopy__(self, memo: Any) -> Steps:
        return self


def _filled(part: Tensor, size: int) -> Tensor:
    out = torch.zeros(size)
    out[: len(part)] = part
    return out


def _runs(positions: Tensor) -> Tensor:
    breaks = torch.cat([torch.tensor([0]), (positions.diff() != 1).nonzero().flatten() + 1])
    ends = torch.cat([breaks[1:], torch.tensor([len(positions)])])
    return torch.stack([positions[breaks], ends - breaks], 1).to(torch.int32).contiguous()


def _positions(runs: Tensor) -> list[int]:
    return [first + i for first, length in runs.tolist() for i in range(length)]


def _aligned(parts: list[Tensor], kind: torch.dtype) -> Tensor:
    """The parts one after another, from the beginning of a cache line, on huge pages if they are many."""
    count = sum(part.numel() for part in parts)
    out = _memory(count * kind.itemsize)[: count * kind.itemsize].view(kind)
    first = 0
    for part in parts:
        out[first : first + part.numel()] = part.reshape(-1)
        first += part.numel()
    return out


def _memory(size: int) -> Tensor:
    """Bytes. Many are mapped anew, since memory that was in use before keeps its small pages."""
    page = 1 << 21
    if size < page:
        memory = torch.empty(size + 64, dtype=torch.uint8)
        return memory[-memory.data_ptr() % 64 :]
    memory = torch.from_numpy(np.frombuffer(mmap.mmap(-1, size + 2 * page), np.uint8))
    memory = memory[-memory.data_ptr() % page :]
    kernels.advise_huge_pages(memory.data_ptr(), -(-size // page) * page)
    return memory
