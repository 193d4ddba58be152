"""What `shrink` fits to and what it judges by: inputs with their targets, split into two parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from filigree.calibration import Calibration, Forward

LEAST = 8  # samples, or 2 batches


@dataclass(frozen=True)
class Samples:
    """Inputs, and the targets of each chunk of them; None where there are none.

    `inputs` holds a tensor, or a list of batches; `targets` a tensor with as many rows, or a list with those of each
    batch.
    """

    inputs: Calibration
    targets: Any = None

    @classmethod
    def of(cls, data: Any, forward: Forward | None, most: int) -> Samples:
        """What the data of a caller are, at most so many samples of them.

        Raises:
            TypeError, ValueError: as of `Calibration.of`.
        """
        x, y = _inputs_and_targets(data)
        if forward is None and isinstance(x, Iterable | Dataset) and not isinstance(x, Tensor | Mapping | str | bytes):
            x, y = _joined(*_read(x, most))
        calibration = Calibration.of(x, forward, "shrink", most, progress=False)
        if calibration is None:
            raise ValueError("shrink: data are needed, or forward=, a function (model) that brings its own.")
        if y is not None and isinstance(calibration.inputs, Tensor) and len(y) != len(calibration.inputs):
            raise ValueError(f"shrink: as many targets as samples are needed: {len(calibration.inputs)}. Got {len(y)}.")
        if isinstance(x, Mapping):
            y = None if y is None else [y]
        whole = cls(calibration, y)
        return whole._rows(torch.arange(most)) if whole._has_rows() and len(whole) > most else whole

    def __len__(self) -> int:
        return len(self.inputs)

    def targets_of_chunks(self) -> list[Any]:
        """The targets of each chunk of the inputs, None where there are none."""
        if isinstance(self.targets, Tensor) and self.inputs.tensor is not None:
            return list(self.targets.split(self.inputs.chunk))
        return [None] * len(self.inputs.chunks()) if self.targets is None else list(self.targets)

    def split(self, seed: int) -> tuple[Samples, Samples]:
        """Three quarters of the samples (or batches), drawn at random, and the others.

        Raises:
            ValueError: there are too few.
        """
        if not self._has_rows():
            count = len(self.inputs.inputs)
            if count < 2:
                raise ValueError(
                    "shrink: several batches are needed, since some are held out, or validation=. Got one."
                )
            held = max(1, count // 4)
            return self._batches(slice(0, count - held)), self._batches(slice(count - held, count))
        if len(self) < LEAST:
            raise ValueError(f"shrink: at least {LEAST} samples are needed. Got {len(self)}.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        held = len(self) // 4
        return self._rows(order[held:].sort().values), self._rows(order[:held].sort().values)

    def example(self, batch: int) -> Calibration:
        """So many samples as one chunk, the first ones again where there are fewer; of what has no rows a batch."""
        first = replace(self, inputs=self.inputs.with_inputs(self.inputs.inputs[:1]), targets=None)
        if isinstance(self.inputs.inputs, Tensor):
            first = replace(self, targets=None)
        if not first._has_rows():
            return first.inputs
        example = first._rows(torch.arange(batch) % len(first)).inputs
        example.chunk = batch
        return example

    def _has_rows(self) -> bool:
        """Whether samples can be chosen one by one: of a tensor, or of a single mapping of tensors."""
        inputs = self.inputs.inputs
        if isinstance(inputs, Tensor):
            return True
        return self.inputs.forward is None and len(inputs) == 1 and _rows_in(inputs[0]) is not None

    def _rows(self, rows: Tensor) -> Samples:
        inputs = self.inputs.inputs
        if isinstance(inputs, Tensor):
            targets = self.targets[rows] if self.targets is not None else None
            return Samples(self.inputs.with_inputs(inputs[rows]), targets)
        batch: Any = inputs[0]
        count = _rows_in(batch)
        taken = batch[rows] if isinstance(batch, Tensor) else {
            key: value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == count else value
            for key, value in batch.items()
        }  # fmt: skip
        targets = [self.targets[0][rows]] if self.targets is not None else None
        return Samples(self.inputs.with_inputs([taken]), targets)

    def _batches(self, which: slice) -> Samples:
        targets = self.targets[which] if self.targets is not None else None
        return Samples(self.inputs.with_inputs(self.inputs.inputs[which]), targets)


def _rows_in(batch: Any) -> int | None:
    """The rows that the tensors of a batch share; None where they do not."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    if not isinstance(batch, Mapping):
        return None
    sizes = {len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim()}
    return sizes.pop() if len(sizes) == 1 else None


def _inputs_and_targets(data: Any) -> tuple[Any, Any]:
    if not isinstance(data, Tensor) and isinstance(getattr(data, "x", None), Tensor):
        return data.x, getattr(data, "y", None)
    if (
        isinstance(data, tuple | list)
        and len(data) == 2
        and isinstance(data[0], Tensor | Mapping)
        and isinstance(data[1], Tensor)
    ):
        return data[0], data[1]
    return data, None


def _read(batches: Any, most: int) -> tuple[list[Any], list[Any]]:
    """The inputs and targets of batches, as many as hold so many samples."""
    if isinstance(batches, Dataset) and not isinstance(batches, Iterable):
        batches = DataLoader(batches, 256)
    inputs: list[Any] = []
    targets: list[Any] = []
    samples = 0
    for batch in batches:
        has_targets = isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[1], Tensor)
        inputs.append(batch[0] if isinstance(batch, tuple | list) and len(batch) else batch)
        targets.append(batch[1] if has_targets else None)
        samples += _rows_in(inputs[-1]) or 1
        if samples >= most:
            break
    return inputs, targets


def _joined(inputs: list[Any], targets: list[Any]) -> tuple[Any, Any]:
    """Batches of tensors of one kind as one tensor, with their targets as one."""
    y = targets if targets and all(target is not None for target in targets) else None

    def alike(tensors: list[Any]) -> bool:
        kinds = {(t.shape[1:], t.dtype) for t in tensors if isinstance(t, Tensor) and t.dim()}
        return len(kinds) == 1 and all(isinstance(t, Tensor) and t.dim() for t in tensors)

    if alike(inputs) and (y is None or alike(y)):
        return torch.cat(inputs), None if y is None else torch.cat(y)
    return inputs, y
