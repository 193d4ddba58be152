"""The data that a trained model is run on: a tensor, batches, or whatever a function of the caller's runs it on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset

from filigree.modes import evaluating
from filigree.outputs import tensors_in

CHUNK = 1024  # samples of a tensor that run at once, at most

Forward = Callable[..., Any]


class Calibration:
    """Inputs of a model, run in chunks.

    Args:
        inputs: a tensor `(samples, ...)`, which is cut into chunks; or batches, each run as it is.
        forward: `forward(model, batch)` runs the model on a batch; with `inputs=None` `forward(model)`, which is one
            chunk. None: `model(batch)`, of a mapping `model(**batch)`.
        progress: whether passes over the data show a bar; None: on a terminal.
    """

    def __init__(
        self, inputs: Tensor | list[Any] | None, forward: Forward | None = None, progress: bool | None = None
    ) -> None:
        self.inputs = [_NOTHING] if inputs is None else inputs
        self.forward, self.progress, self.chunk = forward, progress, CHUNK
        self.validation: Calibration | None = None  # other data, to which nothing is fitted

    @classmethod
    def of(
        cls, data: Any, forward: Forward | None = None, who: str = "filigree", most: int | None = None,
        progress: bool | None = None,
    ) -> Calibration | None:  # fmt: skip
        """What the data of a caller are; None where there are none.

        Args:
            data: a tensor, a pair of it and labels, an object with a tensor `.x`, a mapping of arguments by name, a
                dataset, or an iterable of batches (each a tensor, a pair, a mapping; with `forward` anything).
            most: of an iterable no more samples are read than these need.

        Raises:
            TypeError: data of another kind. ValueError: no samples, or NaN or Inf among them; several tensors of which
                it is not known whether they are batches.
        """
        if isinstance(data, cls):
            return data
        if data is None:
            return None if forward is None else cls(None, forward, progress)
        x = getattr(data, "x", data)
        if (isinstance(x, tuple) and not isinstance(x, PackedSequence)) or _is_pair(x):
            _check_pair(x, who)
            x = x[0] if len(x) else None
        if isinstance(x, Tensor):
            calibration = cls(x, forward, progress)
        elif isinstance(x, Mapping | PackedSequence):
            calibration = cls([x], forward, progress)
        elif isinstance(x, Iterable | Dataset) and not isinstance(x, str | bytes):
            calibration = cls(_read(x, forward, who, most), forward, progress)
        else:
            raise TypeError(
                f"{who}: data must be a tensor, a pair (x, y), have .x and .y, or be batches of these. "
                f"Got {type(data).__name__}."
            )
        calibration._check(who)
        return calibration

    def _check(self, who: str) -> None:
        if not len(self.inputs):
            raise ValueError(f"{who}: data must be finite, at least one sample. Got no batch.")
        for batch in [self.inputs] if isinstance(self.inputs, Tensor) else self.inputs:
            named = batch if isinstance(batch, Mapping) else {"": batch}
            for name, value in named.items():
                what = f" as {name!r}" if isinstance(batch, Mapping) else ""
                for tensor in tensors_in(value):
                    if tensor.dim() and not len(tensor):
                        raise ValueError(f"{who}: data must have at least one sample. Got {tuple(tensor.shape)}{what}.")
                    if tensor.is_floating_point() and not _is_finite(tensor, isinstance(batch, Mapping)):
                        raise ValueError(f"{who}: data must be finite. Got NaN or Inf in {tuple(tensor.shape)}{what}.")

    @property
    def tensor(self) -> Tensor | None:
        """All inputs as one tensor; None where they are batches."""
        return self.inputs if isinstance(self.inputs, Tensor) else None

    def with_inputs(self, inputs: Any) -> Calibration:
        """Other inputs, run in the same way."""
        other = copy.copy(self)
        other.inputs = inputs
        return other

    def __len__(self) -> int:
        """The samples: rows of the tensor, or of the first tensor of each batch."""
        return len(self.inputs) if isinstance(self.inputs, Tensor) else sum(map(samples_in, self.inputs))

    def __getitem__(self, rows: slice | Tensor) -> Calibration:
        """Some of the samples; of batches, `[:n]` is as many as have n samples, at least one."""
        if isinstance(self.inputs, Tensor):
            return self.with_inputs(self.inputs[rows])
        wanted = rows.stop if isinstance(rows, slice) and rows.stop is not None else len(self)
        taken: list[Any] = []
        for batch in self.inputs:
            if wanted > 0:
                taken.append(batch)
                wanted -= samples_in(batch)
        return self.with_inputs(taken)

    def chunks(self) -> list[Any]:
        return list(self.inputs.split(self.chunk)) if isinstance(self.inputs, Tensor) else list(self.inputs)

    def shares(self) -> list[float]:
        """Of each chunk, its share of all samples."""
        sizes = [samples_in(chunk) for chunk in self.chunks()]
        return [size / sum(sizes) for size in sizes]

    def call(self, model: nn.Module, inputs: Any) -> Any:
        """What the model returns for a chunk, of which it is given a copy: it may work in place."""
        return self._call_on(model, owned(inputs))

    def repeatable(self, model: nn.Module, inputs: Any) -> Callable[[], Any]:
        """A call on a chunk, for measurements of time: without a copy each time where the model leaves it as it is."""
        mine = owned(inputs)
        versions = [tensor._version for tensor in tensors_in(mine)]
        with torch.no_grad():
            self._call_on(model, mine)
        is_in_place = versions != [tensor._version for tensor in tensors_in(mine)]
        return lambda: self.call(model, inputs) if is_in_place else self._call_on(model, mine)

    def _call_on(self, model: nn.Module, inputs: Any) -> Any:
        if self.forward is not None:
            return self.forward(model) if inputs is _NOTHING else self.forward(model, inputs)
        return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)

    def outputs(self, model: nn.Module) -> Iterator[Any]:
        """What the model returns, chunk by chunk."""
        for chunk in self.chunks():
            yield self.call(model, chunk)

    def some(self, samples: int, seed: int) -> Calibration:
        """So many samples at most, drawn at random; of batches the first ones."""
        if not isinstance(self.inputs, Tensor):
            return self[:samples]
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:samples]]

    def split(
        self, samples: int, seed: int, model: nn.Module, part: int = 4, least: int = 0
    ) -> tuple[Calibration, Calibration | None]:
        """So many samples at most, and others to judge by; None where none can be split off.

        The rows of a tensor are samples. A list of batches is split between batches; one of fewer than `part` within
        the last one, if that is a tensor or a mapping, and if the model, tried on both parts, gives the same rows of
        what it gives for the whole batch.

        Args:
            part: where there are no others, one in so many of the samples (or of the batches) is split off.
            least: batches that are split off even so where there are several, fewer than `part`, and no rows can be.
        """
        if isinstance(self.inputs, Tensor):
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
            fitted, held = _shares(len(order), samples, part)
            others = order[fitted : fitted + held]
            return self[order[:fitted]], self[others] if len(others) else None
        batches = self[: samples + -(-samples // part)].inputs
        whole = self.with_inputs(batches)
        held = len(batches) // part
        if not held and (some := whole._split_last(samples, seed, model, part)) is not None:
            return some
        held = held or min(least, len(batches) - 1)
        return (self.with_inputs(batches[:-held]), self.with_inputs(batches[-held:])) if held else (whole, None)

    def _split_last(
        self, samples: int, seed: int, model: nn.Module, part: int
    ) -> tuple[Calibration, Calibration] | None:
        """The same with the rows of the last batch in two; None where the model does not take them so."""
        *batches, last = self.inputs
        if self.forward is not None or (rows := _rows_in(last)) < 2:
            return None
        before = sum(map(samples_in, batches))
        fitted, held = _shares(before + rows, samples, part)
        fitted = max(1, min(fitted - before, rows - 1))
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        both = order[:fitted], order[fitted : fitted + held]
        if not self._takes_rows(model, last, both):
            return None
        parts = [_rows_of(last, which, rows) for which in both]
        return self.with_inputs([*batches, parts[0]]), self.with_inputs([parts[1]])

    def takes_rows(self, model: nn.Module) -> bool:
        """Whether the rows of the first batch are samples: those of a tensor are; others where the model, tried on each
        half of them, gives the same rows of what it gives for the whole batch."""
        if isinstance(self.inputs, Tensor):
            return True
        first = self.inputs[0]
        if self.forward is not None or (rows := _rows_in(first)) < 2:
            return False
        return self._takes_rows(model, first, torch.randperm(rows, generator=torch.Generator().manual_seed(0)).chunk(2))

    def _takes_rows(self, model: nn.Module, batch: Any, parts: Iterable[Tensor]) -> bool:
        """Whether the model gives for these rows of a batch the same rows of what it gives for all of it."""
        try:
            with evaluating(model), torch.no_grad():
                y, rows = self.call(model, batch), _rows_in(batch)
                return all(_same_rows(self.call(model, _rows_of(batch, which, rows)), y, which) for which in parts)
        except Exception:  # whatever the model's own code says of fewer rows
            return False

    def rows(self, which: Tensor) -> Calibration:
        """These rows of the tensor, or of the first batch, which `takes_rows` says are samples."""
        if isinstance(self.inputs, Tensor):
            return self.with_inputs(self.inputs[which])
        return self.with_inputs([_rows_of(self.inputs[0], which, _rows_in(self.inputs[0]))])


def _shares(count: int, samples: int, part: int) -> tuple[int, int]:
    """Of so many samples, how many are fitted to and how many at most are held out."""
    fitted = samples if count >= samples + -(-samples // part) else -(-(part - 1) * count // part)
    fitted = min(fitted, count - 1) or 1
    return fitted, -(-fitted // (part - 1))


def _rows_in(batch: Any) -> int:
    """The rows of a tensor, or of the first tensor of a mapping; 0 of others."""
    values = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    return next((len(value) for value in values if isinstance(value, Tensor) and value.dim()), 0)


def _rows_of(batch: Any, which: Tensor, rows: int) -> Any:
    """Some rows of all tensors that have as many."""
    if isinstance(batch, Mapping):
        return {key: _rows_of(value, which, rows) for key, value in batch.items()}
    return batch[which.to(batch.device)] if isinstance(batch, Tensor) and batch.shape[:1] == (rows,) else batch


def _same_rows(part: Any, whole: Any, which: Tensor) -> bool:
    """Whether all numbers of an output are those rows of another one, along whichever side; sums over all are not
    looked at."""
    pairs = [
        (a, b)
        for a, b in zip(tensors_in(part), tensors_in(whole), strict=True)
        if b.dim() and (b.is_floating_point() or b.is_complex())
    ]

    def same(a: Tensor, b: Tensor) -> bool:
        sides = [i for i in range(b.dim()) if a.dim() == b.dim() and a.shape[i] == len(which) <= b.shape[i]]
        close = torch.finfo(b.dtype).eps ** 0.5 * b.abs().max()
        rows = [b.index_select(side, which.to(b.device)) for side in sides if int(which.max()) < b.shape[side]]
        return any(a.shape == some.shape and bool(((a - some).abs() <= close).all()) for some in rows)

    return bool(pairs) and all(same(a, b) for a, b in pairs)


_NOTHING = object()  # the chunk of a forward function that brings its own inputs


def owned(inputs: Any) -> Any:
    """The same inputs with tensors of their own."""
    if isinstance(inputs, Tensor):
        return inputs.clone()
    if isinstance(inputs, Mapping):
        values = {key: owned(value) for key, value in inputs.items()}
        if not isinstance(inputs, MutableMapping):
            return values
        same = copy.copy(inputs)
        same.update(values)
        return same
    return type(inputs)(map(owned, inputs)) if type(inputs) in (list, tuple) else inputs


def _is_finite(tensor: Tensor, is_argument: bool) -> bool:
    """Whether all numbers are; in an argument by name, which may be a mask to be added, there may be minus infinity."""
    bad = tensor.isnan() | tensor.isposinf() if is_argument else ~tensor.isfinite()
    return not bool(bad.any())


def _check_pair(x: Any, who: str) -> None:
    """Refuse several tensors that may as well be batches."""
    alike = all(isinstance(part, Tensor) and part.is_floating_point() for part in x) and (
        len({(part.shape[1:], part.dtype) for part in x}) == 1
    )
    holds_pairs = len(x) > 0 and type(x[0]) in (tuple, list)
    if len(x) > 2 or holds_pairs or (isinstance(x, list) and alike):
        raise ValueError(
            f"{who}: data must be a tensor, a pair (x, y), or batches of these. Got a {type(x).__name__} of {len(x)}: "
            "give a tuple (x, y), or batches as a DataLoader or an iterator."
        )


def _is_pair(x: Any) -> bool:
    return isinstance(x, list) and len(x) == 2 and all(isinstance(part, Tensor) for part in x)


def samples_in(batch: Any) -> int:
    """The rows of the first tensor in a batch, 1 where it holds none."""
    tensors = [tensor for tensor in tensors_in(batch) if tensor.dim()]
    return len(tensors[0]) if tensors else 1


def _read(batches: Any, forward: Forward | None, who: str, most: int | None) -> Tensor | list[Any]:
    """The batches, in memory; those of tensors of one size as one tensor."""
    if isinstance(batches, Dataset) and not isinstance(batches, Iterable):
        batches = DataLoader(batches, 256)
    inputs: list[Any] = []
    samples = 0
    for batch in batches:
        part = batch if forward is not None else _input_of(batch, who)
        inputs.append(part)
        samples += samples_in(part)
        if most is not None and samples >= most:
            break
    if not inputs or not all(isinstance(part, Tensor) and part.dim() for part in inputs):
        return inputs
    return torch.cat(inputs) if len({(part.shape[1:], part.dtype) for part in inputs}) == 1 else inputs


def _input_of(batch: Any, who: str) -> Any:
    whole = isinstance(batch, PackedSequence)  # a tuple too
    x = batch[0] if isinstance(batch, tuple | list) and batch and not whole else batch
    if not isinstance(x, Tensor | Mapping | PackedSequence):
        raise TypeError(
            f"{who}: batches must be tensors, pairs (x, y) or mappings of arguments. Got {type(batch).__name__}: give "
            "forward=, a function (model, batch) that runs the model."
        )
    return x
