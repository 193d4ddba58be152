"""Weights as the kernel for inference reads them (`kernels/panel_weights.h`): in panels of 16 outputs, in a coding."""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from filigree.ops._load import kernels
from filigree.ops.addresses import address

PANEL, WIDTH, GROUP = 16, 4, 4
CODINGS = (
    "floats", "bytes", "bitmap", "rows", "tiles", "windows", "narrow windows", "int8", "int8 bitmap", "int8 tiles"
)  # fmt: skip
"""How a weight is stored: dense float32; int8, with a scale for each output; the nonzeros with a mask for each input;
the nonzeros by rows, for few vectors of inputs with columns of 16 bits, for many in blocks; the nonzeros of 16 outputs
side by side, those that lie within a window of 32 inputs; those of 8 outputs within a window of 8.

And, where inputs are rounded to bytes too, by groups of four inputs: dense; the nonzeros with a mask; groups that are
not zero, by rows."""

INT8_CODINGS = CODINGS[7:]
MOST_INPUTS = 65536  # of products of bytes, so that no sum of 32 bits overflows
_CHUNK, _BLOCK = 128, 8 * PANEL  # words and rows that tiles take at a time, as `kernels/point_tiles.h` says
_NONE = 1 << 40  # no column
_SLACK = 64  # bytes that are read beyond the last ones


def padded(count: int) -> int:
    """The next multiple of a panel."""
    return -(-count // PANEL) * PANEL


class Windows(NamedTuple):
    """Neighbouring inputs, and words with some numbers of each of a few outputs (`kernels/by_vector.h`)."""

    inputs: int
    outputs: int
    bits: int  # which of the inputs a number belongs to
    sizes: tuple[int, ...]  # how many numbers of an output a word may have
    word: Any  # numpy's type


_WINDOWS = {
    "windows": Windows(32, 16, 5, (2, 3, 4, 6), np.uint32),
    "narrow windows": Windows(8, 8, 3, (1, 2), np.uint8),
}


class PanelWeight(NamedTuple):
    """A weight `(outputs, depth)` as the kernel reads it."""

    coding: str
    depth: int
    panels: int
    values: Tensor
    masks: Tensor | None
    starts: Tensor | None
    runs: Tensor  # (runs, 2) int32: where neighbours among the inputs begin, and how many they are
    totals: Tensor | None = None  # int32: of bytes the sums of each output's weights, of windows where they begin
    groups: int = 1  # of panels, of floats: each reads the inputs `shift` numbers after those of the one before
    shift: int = 0

    def plain(self) -> tuple[Any, ...]:
        return (
            CODINGS.index(self.coding), self.depth, self.panels, self.values.data_ptr(), address(self.masks),
            address(self.starts), self.runs.data_ptr(), len(self.runs), address(self.totals), self.groups, self.shift,
        )  # fmt: skip

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self[3:6] if isinstance(part, Tensor))


def pack(coding: str, weight: Tensor, positions: Tensor) -> PanelWeight:
    """Pack a weight `(outputs, depth)`, float32 or (for "bytes" and the codings of int8) int8.

    Args:
        positions: `(depth,)`, distinct: where each input lies from the first one that is read. For "rows" they must be
            below 65,536.
    """
    order = torch.argsort(positions)
    positions, weight = positions[order], weight[:, order]
    runs = _runs(positions)
    totals = None
    if coding in INT8_CODINGS:
        weight = weight.to(torch.int8)
        totals = torch.zeros(padded(len(weight)), dtype=torch.int32)
        totals[: len(weight)] = weight.sum(1, dtype=torch.int32)
        weight = in_groups(weight, runs)
    outputs, depth = weight.shape
    panels = padded(outputs) // PANEL
    values, masks, starts, *windows = _PACKED[coding](weight, positions, panels)
    return PanelWeight(coding, depth, panels, values, masks, starts, runs, windows[0] if windows else totals)


Parts = tuple[Tensor, Tensor | None, Tensor | None]  # values, masks, starts


def _by_windows(kind: Windows) -> Any:
    """Words, where those of each group of outputs begin and last how many numbers of an output a word has, and windows.

    A window begins at the first connection of a group that is not in a word before, and each output has as many of its
    next ones in the word as lie in the window and as fit; of a few sizes the one of the fewest numbers is taken.
    """

    def pack_windows(weight: Tensor, positions: Tensor, panels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, groups = panels * PANEL, panels * PANEL // kind.outputs
        row, column = weight.nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=rows)
        within = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        most, last = int(counts.max()) if rows else 0, int(positions.max()) if len(positions) else 0
        columns = np.full((rows, most + max(kind.sizes)), _NONE)
        columns[row.numpy(), within.numpy()] = positions[column].numpy()
        values = np.zeros(columns.shape, np.float32)
        values[row.numpy(), within.numpy()] = weight[row, column].float().numpy()
        by_group = columns.reshape(groups, kind.outputs, -1)
        size, windows, firsts, taken = min(
            (_words(by_group, kind.inputs, size, last) for size in kind.sizes),
            key=lambda words: (words[0] + 1) * (words[1] != _NONE).sum(),
        )
        group, step = (windows != _NONE).T.nonzero()  # group by group
        begins, first, count = windows[step, group], firsts[step, group], taken[step, group]
        at = first[..., None] + np.arange(size)
        kept = np.arange(size) < count[..., None]
        outputs = (group[:, None] * kind.outputs + np.arange(kind.outputs))[..., None]
        numbers = np.where(kept, columns[outputs, at] - begins[:, None, None], 0)
        words = (numbers << kind.bits * np.arange(size)).sum(-1).astype(kind.word)
        floats = np.where(kept, values[outputs, at], np.float32(0)).transpose(0, 2, 1)
        starts = torch.cat([_starts(torch.from_numpy(group), groups), torch.tensor([size])])
        return (
            _aligned([torch.from_numpy(np.ascontiguousarray(floats))], torch.float32),
            _aligned([torch.from_numpy(words.view(np.uint8))], torch.uint8),
            starts,
            torch.from_numpy(begins.astype(np.int32)),
        )

    return pack_windows


def _words(columns: Any, inputs: int, size: int, last: int) -> tuple[int, Any, Any, Any]:
    """The windows of words of a size, `(steps, groups)`, and each output's first connection and how many there.

    Args:
        columns: `(groups, outputs, numbers)`, sorted, at the end none. inputs: of a window. last: the largest column.
    """
    groups = len(columns)
    next_one = np.zeros(columns.shape[:2], np.int64)
    steps: list[tuple[Any, Any, Any]] = []
    while True:
        ahead = np.take_along_axis(columns, next_one[..., None] + np.arange(size), 2)
        begins = ahead[..., 0].min(1, initial=_NONE)
        if (begins == _NONE).all():
            break
        begins = np.where(begins == _NONE, _NONE, np.minimum(begins, max(0, last - inputs + 1)))
        count = ((ahead < begins[:, None, None] + inputs) & (ahead != _NONE)).sum(-1)
        steps.append((begins, next_one, count))
        next_one = next_one + count
    if not steps:
        empty = np.zeros((0, groups, columns.shape[1]), np.int64)
        return size, empty[..., 0], empty, empty
    windows, firsts, taken = (np.stack(part) for part in zip(*steps, strict=True))
    return size, windows, firsts, taken


def _rows(weight: Tensor, positions: Tensor, panels: int) -> Parts:
    row, column = weight.nonzero(as_tuple=True)
    columns = torch.from_numpy(positions[column].numpy().astype(np.uint16))
    starts = _starts(row, panels * PANEL)
    return _aligned([weight[row, column].float()], torch.float32), _aligned([columns], torch.uint16), starts


def _tiles(words: Tensor, nonzero: Tensor, panels: int) -> Parts:
    """The words `(outputs, words)` that are not zero by blocks of outputs, then chunks of inputs, then outputs."""
    row, column = nonzero.nonzero(as_tuple=True)
    rows, chunks = panels * PANEL, max(1, -(-words.shape[1] // _CHUNK))
    block = row // _BLOCK
    rows_of_block = (rows - block * _BLOCK).clamp(max=_BLOCK)
    slot = block * chunks * _BLOCK + column // _CHUNK * rows_of_block + row % _BLOCK
    order = torch.argsort(slot, stable=True)
    columns = torch.from_numpy((column[order] % _CHUNK).numpy().astype(np.uint16))
    values = _aligned([words[row[order], column[order]]], words.dtype)
    return values, _aligned([columns], torch.uint16), _starts(slot, rows * chunks)


def _float_tiles(weight: Tensor, positions: Tensor, panels: int) -> Parts:
    return _tiles(weight.float(), weight != 0, panels)


def _int8_tiles(weight: Tensor, positions: Tensor, panels: int) -> Parts:
    words = weight.contiguous().view(torch.int32)
    return _tiles(words, words != 0, panels)


def _streams(weight: Tensor, panels: int, group: int, width: int = WIDTH) -> list[Tensor]:
    """A block of at most `width` panels each: `(groups, panels of the block, 16 x group)`."""
    whole = weight.new_zeros(panels * PANEL, weight.shape[1])
    whole[: len(weight)] = weight
    blocks = whole.view(panels, PANEL, -1, group).split(width)
    return [block.permute(2, 0, 1, 3).flatten(2) for block in blocks]


def _dense(kind: torch.dtype, group: int, width: int) -> Any:
    def pack_dense(weight: Tensor, positions: Tensor, panels: int) -> Parts:
        return _aligned([stream.to(kind) for stream in _streams(weight, panels, group, width)], kind), None, None

    return pack_dense


def _bitmap(group: int) -> Any:
    def pack_bitmap(weight: Tensor, positions: Tensor, panels: int) -> Parts:
        streams = _streams(weight, panels, group)
        bits = (1 << np.arange(PANEL)).astype(np.uint32)
        words = [(s != 0).reshape(-1, PANEL).numpy() for s in streams]
        masks = [torch.from_numpy((word * bits).sum(-1).astype(np.uint16)) for word in words]
        kept = [s[s != 0] for s in streams]
        starts = torch.tensor([0, *(len(k) for k in kept)]).cumsum(0)[:-1]
        values = _aligned([*kept, weight.new_zeros(_SLACK)], weight.dtype)  # whole vectors are read
        return values, _aligned(masks, torch.uint16), starts

    return pack_bitmap


_PACKED: dict[str, Any] = {
    "floats": _dense(torch.float32, 1, 1), "bytes": _dense(torch.int8, 1, 1), "bitmap": _bitmap(1), "rows": _rows,
    "tiles": _float_tiles, "int8": _dense(torch.int8, GROUP, WIDTH), "int8 bitmap": _bitmap(GROUP),
    "int8 tiles": _int8_tiles,
    **{coding: _by_windows(kind) for coding, kind in _WINDOWS.items()},
}  # fmt: skip


def unpack(weight: PanelWeight, outputs: int) -> Tensor:
    """The dense weight of the order of `positions` sorted (in groups, those of `in_groups`), for comparison."""
    panels, depth = weight.panels, weight.depth
    if weight.coding == "rows":
        return _unpack_rows(weight)[:outputs]
    if weight.coding.endswith("tiles"):
        return _unpack_tiles(weight)[:outputs]
    if weight.coding in _WINDOWS:
        return _unpack_windows(weight, _WINDOWS[weight.coding])[:outputs]
    group = GROUP if weight.coding in INT8_CODINGS else 1
    width = 1 if weight.coding in ("floats", "bytes") else WIDTH
    out = torch.zeros(panels * PANEL, depth)
    first = used = 0
    for begin in range(0, panels, width):
        wide = min(width, panels - begin)
        count = depth * wide * PANEL
        if weight.masks is None:
            stream = weight.values[first : first + count].float()
        else:
            words = weight.masks[begin * depth : (begin + wide) * depth].numpy().astype(np.int64)
            mask = torch.from_numpy((words[:, None] >> np.arange(PANEL) & 1).astype(bool)).reshape(-1)
            stream = torch.zeros(count)
            stream[mask] = weight.values[used : used + int(mask.sum())].float()
            used += int(mask.sum())
        first += count
        block = stream.view(depth // group, wide, PANEL, group).permute(1, 2, 0, 3).reshape(-1, depth)
        out[begin * PANEL : begin * PANEL + len(block)] = block
    return out[:outputs]


def _unpack_rows(weight: PanelWeight) -> Tensor:
    assert weight.starts is not None
    assert weight.masks is not None
    columns = torch.from_numpy(weight.masks.numpy().astype(np.int64))
    columns = torch.searchsorted(torch.tensor(_positions(weight.runs)), columns)
    out = torch.zeros(weight.panels * PANEL, weight.depth)
    out[torch.repeat_interleave(torch.arange(len(out)), weight.starts.diff()), columns] = weight.values
    return out


def _unpack_windows(weight: PanelWeight, kind: Windows) -> Tensor:
    assert weight.starts is not None
    assert weight.masks is not None
    assert weight.totals is not None
    size = int(weight.starts[-1])
    words = torch.from_numpy(weight.masks.numpy().view(kind.word).astype(np.int64)).view(-1, 1, kind.outputs)
    numbers = words >> kind.bits * torch.arange(size)[:, None] & kind.inputs - 1
    positions = numbers + weight.totals[:, None, None]
    group = torch.repeat_interleave(torch.arange(len(weight.starts) - 2), weight.starts[:-1].diff())
    outputs = (group[:, None, None] * kind.outputs + torch.arange(kind.outputs)).expand_as(positions)
    values = weight.values.view(positions.shape)
    columns = torch.searchsorted(torch.tensor(_positions(weight.runs)), positions)
    out = torch.zeros(weight.panels * PANEL, weight.depth)
    out[outputs[values != 0], columns[values != 0]] = values[values != 0]
    return out


def _unpack_tiles(weight: PanelWeight) -> Tensor:
    assert weight.starts is not None
    assert weight.masks is not None
    rows, bytes_of_word = weight.panels * PANEL, weight.coding == "int8 tiles"
    words = torch.zeros(rows, weight.depth // (GROUP if bytes_of_word else 1), dtype=weight.values.dtype)
    chunks, slot = max(1, -(-words.shape[1] // _CHUNK)), 0
    for block in range(0, rows, _BLOCK):
        for chunk in range(chunks):
            for row in range(block, min(block + _BLOCK, rows)):
                for number in range(int(weight.starts[slot]), int(weight.starts[slot + 1])):
                    words[row, chunk * _CHUNK + int(weight.masks[number])] = weight.values[number]
                slot += 1
    return words.view(torch.int8).float() if bytes_of_word else words


def in_groups(weight: Tensor, runs: Tensor) -> Tensor:
    """The columns of a weight with those of each run filled up with zeros to groups of four."""
    lengths = runs[:, 1].long()
    wide = -(-lengths // GROUP) * GROUP
    begins = wide.cumsum(0) - wide - (lengths.cumsum(0) - lengths)
    out = weight.new_zeros(len(weight), int(wide.sum()))
    out[:, torch.arange(weight.shape[1]) + begins.repeat_interleave(lengths)] = weight
    return out


def _starts(numbers: Tensor, count: int) -> Tensor:
    starts = torch.zeros(count + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(numbers, minlength=count).cumsum(0)
    return starts


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
