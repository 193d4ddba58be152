"""Layers whose rows are divided over processes: which rows a process holds, and what all of them have to agree on.

`WHOLE` is a layer that one process holds, `Shards` one of which each holds some rows. What draws and chooses
connections asks the layer's part for sums, random numbers and the smallest of all weights, so that one piece of code
serves both, and the shards together have the connections that a whole layer of the same seed has.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed

from filigree.topology.flat_indices import distinct, empty_flat_indices

if distributed.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
    # Its functions have the default group of the moment as an argument's default, so that imported later, by the first
    # optimizer, they keep the group alive. A thread of gloo that lives when Python ends may abort the process.
    import torch.distributed.nn.functional

_CHUNK = 1 << 20  # numbers drawn at a time; a multiple of 16, by which torch draws normal ones
_BYTES = 1 << 26  # of a message between processes
_DIGIT = 16  # bits of a number that are looked at together


class Whole:
    """All rows of a layer are in this process."""

    rank, processes = 0, 1

    def rows(self, out_features: int) -> tuple[int, int]:
        """The first of a layer's rows that this process holds, and the one after the last."""
        return 0, out_features

    def total(self, number: int) -> int:
        """The sum of a number over the processes."""
        return number

    def smallest(self, sizes: np.ndarray, count: int) -> np.ndarray:
        """Which of the numbers `(n,)` here are among the `count` smallest of all processes, `(n,)` bool; of equal ones
        those that come first."""
        chosen = np.zeros(len(sizes), dtype=bool)
        if count:
            threshold = np.partition(sizes, count - 1)[count - 1]
            chosen = sizes < threshold
            ties = np.flatnonzero(sizes == threshold)
            chosen[ties[: count - int(chosen.sum())]] = True
        return chosen

    def numbers(self, draw: Callable[[int], Tensor], count: int) -> Tensor:
        """`count` of the random numbers that `draw(n)` makes: those that a whole layer has at these positions."""
        return draw(count)

    def distinct(self, population: int, count: int, generator: torch.Generator, first: int, last: int) -> Tensor:
        """Those of `distinct(population, count, generator)` in `[first, last)`, less `first`."""
        return distinct(population, count, generator)

    def with_repeats(self, population: int, count: int, generator: torch.Generator, first: int, last: int) -> Tensor:
        """The same of `count` draws from `[0, population)`, each number once, sorted."""
        return torch.randint(population, (count,), generator=generator).unique()

    def empty(self, taken: Tensor, population: int, count: int, generator: torch.Generator) -> Tensor:
        """Draw flat indices of this process's rows that are not in `taken`: its part of `count` in the whole layer.

        Args:
            taken: sorted flat indices here. population: how many there are here.
        """
        return empty_flat_indices(taken, population, count, generator)

    def own_generator(self, generator: torch.Generator) -> torch.Generator:
        """A generator for draws whose number differs between the processes."""
        return generator


WHOLE = Whole()


class Shards(Whole):
    """The rows of layers divided over the processes of a group: the first `out % processes` have one row more.

    The group is not kept alive, so that its threads end in `destroy_process_group()` also where a model is held longer.
    """

    def __init__(self, group: Any) -> None:
        self._group = weakref.ref(group)
        self.rank, self.processes = distributed.get_rank(group), distributed.get_world_size(group)

    @property
    def group(self) -> Any:
        """The processes, as `torch.distributed` has them."""
        group = self._group()
        if group is None:
            raise ValueError("a sharded layer needs its process group. Got one that was destroyed.")
        return group

    def __deepcopy__(self, memo: dict[int, Any]) -> Shards:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a sharded layer cannot be pickled: fg.save writes it, from all processes together.")

    def rows(self, out_features: int) -> tuple[int, int]:
        least, more = divmod(out_features, self.processes)
        first = self.rank * least + min(self.rank, more)
        return first, first + least + (self.rank < more)

    def each(self, number: int) -> list[int]:
        """The number of each process."""
        numbers = torch.zeros(self.processes, dtype=torch.int64)
        numbers[self.rank] = number
        return self.sum_(numbers).tolist()

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place of the tensor of each."""
        distributed.all_reduce(tensor, group=self.group)
        return tensor

    def objects(self, value: Any) -> list[Any]:
        """A plain value of each process."""
        values: list[Any] = [None] * self.processes
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def wait(self) -> None:
        distributed.barrier(group=self.group)

    def total(self, number: int) -> int:
        return sum(self.each(number))

    def smallest(self, sizes: np.ndarray, count: int) -> np.ndarray:
        keys = _keys(sizes)
        if not count:
            return np.zeros(len(keys), dtype=bool)
        threshold, rest, inside = 0, count, keys
        for shift in range(8 * keys.itemsize - _DIGIT, -1, -_DIGIT):  # digit by digit, the highest first
            digits = (inside >> keys.dtype.type(shift)) & keys.dtype.type((1 << _DIGIT) - 1)
            histogram = torch.from_numpy(np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT))
            self.sum_(histogram)
            ends = histogram.cumsum(0).numpy()
            digit = int(np.searchsorted(ends, rest))
            rest -= int(ends[digit] - histogram[digit])
            threshold, inside = threshold << _DIGIT | digit, inside[digits == digit]
        chosen = keys < threshold
        ties = np.flatnonzero(keys == threshold)
        before = sum(self.each(len(ties))[: self.rank])
        chosen[ties[: max(0, rest - before)]] = True
        return chosen

    def numbers(self, draw: Callable[[int], Tensor], count: int) -> Tensor:
        each = self.each(count)
        begin, total = sum(each[: self.rank]), sum(each)
        parts, done = [draw(0)], 0
        while done < total:  # a last chunk of less than 16 would be drawn in another way
            size = _CHUNK if total - done >= 2 * _CHUNK else total - done
            part = draw(size)
            parts.append(part[max(0, begin - done) : max(0, begin + count - done)].clone())
            done += size
        return torch.cat(parts)

    def distinct(self, population: int, count: int, generator: torch.Generator, first: int, last: int) -> Tensor:
        if 2 * count > population or not count >= 0:  # drawn in another way, or refused
            return cut(distinct(population, count, generator), first, last)
        drawn = torch.empty(0, dtype=torch.int64)
        lacking = count
        while lacking:
            more = self._inside(population, lacking, generator, first, last)
            drawn = torch.cat([drawn, more]).unique() if len(drawn) else more
            lacking = count - self.total(len(drawn))
        return drawn - first

    def with_repeats(self, population: int, count: int, generator: torch.Generator, first: int, last: int) -> Tensor:
        return self._inside(population, count, generator, first, last) - first

    def _inside(self, population: int, count: int, generator: torch.Generator, first: int, last: int) -> Tensor:
        """Of so many draws those in `[first, last)`, each once, sorted; no more than a chunk of the others is held."""
        parts = [torch.empty(0, dtype=torch.int64)]
        for done in range(0, count, _CHUNK):
            drawn = torch.randint(population, (min(_CHUNK, count - done),), generator=generator)
            parts.append(drawn[(drawn >= first) & (drawn < last)])
        return torch.cat(parts).unique()

    def empty(self, taken: Tensor, population: int, count: int, generator: torch.Generator) -> Tensor:
        free = self.each(population - taken.numel())
        first = sum(free[: self.rank])
        ranks = self.distinct(sum(free), count, generator, first, first + free[self.rank])
        empty_before = taken - torch.arange(taken.numel())
        return ranks + torch.searchsorted(empty_before, ranks, right=True)

    def own_generator(self, generator: torch.Generator) -> torch.Generator:
        seed = int(torch.randint(2**62, (1,), generator=generator))
        return torch.Generator().manual_seed(seed + self.rank)

    # -- tensors of the other processes, in the first one --------------------------------------------------------------

    def streamed(self, own: Tensor) -> Streamed:
        """The own tensors of all processes, one after another along the first side."""
        lengths = self.each(len(own))
        sources = [Source(self, rank, own if rank == self.rank else None) for rank in range(self.processes)]
        shape = (sum(lengths), *own.shape[1:])
        shapes = [(length, *own.shape[1:]) for length in lengths]
        return Streamed(own.dtype, shape, list(zip(sources, shapes, strict=True)))

    def states(self, own: Any) -> list[Any]:
        """The nested state of each process; its tensors are `Streamed`: they stay where they are until written."""
        tensors: list[Tensor] = []

        def note(tensor: Tensor) -> _Note:
            tensors.append(tensor)
            return _Note(tensor.dtype, tuple(tensor.shape), len(tensors) - 1)

        notes = self.objects(mapped(own, Tensor, note))

        def stream(rank: int) -> Callable[[_Note], Streamed]:
            def of(note: _Note) -> Streamed:
                source = Source(self, rank, tensors[note.number] if rank == self.rank else None)
                return Streamed(note.dtype, note.shape, [(source, note.shape)])

            return of

        return [mapped(state, _Note, stream(rank)) for rank, state in enumerate(notes)]


class _Note(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    number: int


class Source(NamedTuple):
    """A tensor that one process of a group holds; None in the others."""

    shards: Shards
    rank: int
    own: Tensor | None

    def pieces(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """Its numbers piece by piece in the first process; there is nothing in the others, of which its own sends."""
        shards, size = self.shards, torch.Size(shape).numel()
        step = max(1, _BYTES // dtype.itemsize)
        flat = None if self.own is None else self.own.detach().cpu().contiguous().reshape(-1)
        for begin in range(0, size, step):
            if flat is not None:
                piece = flat[begin : begin + step]
            elif shards.rank == 0:
                piece = torch.empty(min(step, size - begin), dtype=dtype)
            else:
                return
            if self.rank and self.rank == shards.rank:
                distributed.send(piece.view(torch.uint8), _global(shards, 0), group=shards.group)
            elif self.rank and shards.rank == 0:
                distributed.recv(piece.view(torch.uint8), _global(shards, self.rank), group=shards.group)
            if shards.rank == 0:
                yield piece


@dataclass(frozen=True, eq=False)
class Streamed:
    """A tensor whose parts several processes hold, to be written by the first of them (`io.storage.write_state`).

    All of them must run through `pieces`, of the same tensors in the same order: the others send theirs meanwhile.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: list[tuple[Source, tuple[int, ...]]]

    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    def element_size(self) -> int:
        return self.dtype.itemsize

    def pieces(self) -> Iterator[Tensor]:
        for source, shape in self.parts:
            yield from source.pieces(self.dtype, shape)


def part_of(layer: Any) -> Whole:
    """Which rows of a layer these are; a module of the user's may have an attribute `part` of its own."""
    part = getattr(layer, "part", WHOLE)
    return part if isinstance(part, Whole) else WHOLE


def shards_of(group: Any, who: str) -> Whole:
    """The division over a group of processes, by default all of them; a single process has all rows.

    Raises:
        ValueError: by the name of `who` asks: a launcher started several processes that have no process group yet.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        if group is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                f"{who}: several processes need a process group. Call torch.distributed.init_process_group() first."
            )
        return WHOLE
    group = distributed.group.WORLD if group is None else group
    if distributed.get_rank(group) < 0:
        raise ValueError(f"{who}: group must be one that this process belongs to.")
    return Shards(group) if distributed.get_world_size(group) > 1 else WHOLE


def cut(flat_indices: Tensor, first: int, last: int) -> Tensor:
    """Those of sorted flat indices in `[first, last)`, less `first`."""
    begin, end = torch.searchsorted(flat_indices, torch.tensor([first, last])).tolist()
    return flat_indices[begin:end] - first


def mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """A nested state with `function(part)` in place of each part of a kind."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {key: mapped(item, kind, function) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(item, kind, function) for item in value)
    return value


def _global(shards: Shards, rank: int) -> int:
    return distributed.get_global_rank(shards.group, rank)


def _keys(numbers: np.ndarray) -> np.ndarray:
    """Unsigned integers in the order of floating-point numbers."""
    kind: Any = np.uint64 if numbers.dtype.itemsize == 8 else np.uint32
    bits: Any = numbers.view(kind)
    sign = kind(1 << (8 * numbers.dtype.itemsize - 1))
    return np.where(bits & sign, ~bits, bits | sign)
