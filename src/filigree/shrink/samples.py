"""What `shrink` fits to and what it judges by: inputs with their targets, split into two parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from filigree.calibration import Calibration, Forward, samples_in
from filigree.outputs import numbers_in

LEAST = 8  # samples, or 2 batches
TRIED = 64  # samples among which usual ones are looked for


@dataclass(frozen=True)
class Samples:
    """Inputs, and the targets of each chunk of them; None where there are none.

    `inputs` holds a tensor, or a list of batches; `targets` a tensor with as many rows, or a list with those of each
    batch. `by_rows`: whether the rows of a batch are samples, on which the model was tried; those of a tensor are.
    """

    inputs: Calibration
    targets: Any = None
    by_rows: bool = False

    @classmethod
    def of(cls, data: Any, forward: Forward | None, most: int, model: nn.Module, seed: int = 0) -> Samples:
        """What the data of a caller are, at most so many samples of them, drawn by the seed; of batches the first ones.

        Args:
            model: is tried on rows of a mapping or of batches, which are only cut where it takes them as samples.

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
        whole = cls(calibration, y, calibration.takes_rows(model))
        if not whole._has_rows() or len(whole) <= most:
            return whole
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
        return whole._rows(order[:most].sort().values)

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

    def example(self, batch: int, model: nn.Module | None = None) -> Calibration:
        """So many samples as one chunk, the first ones again where there are fewer; of what has no rows a batch.

        With a model, those samples of a tensor come first whose outputs are of a usual size: the error of a layout is
        taken as a share of these.
        """
        if self.inputs.tensor is None and not self.by_rows:
            return self.inputs.with_inputs(self.inputs.inputs[:1])
        rows = len(self.inputs.tensor if self.inputs.tensor is not None else self.inputs[:1])
        order = torch.arange(rows)
        if model is not None and self.inputs.tensor is not None:
            order = self._usual_ones_first(model)
        example = self.inputs.rows(order[torch.arange(batch) % rows])
        example.chunk = batch
        return example

    def _usual_ones_first(self, model: nn.Module) -> Tensor:
        """The numbers of the rows; the first ones by how far the model's largest number is from its median."""
        order = torch.arange(len(self))
        some = self.inputs.rows(order[:TRIED])
        with torch.no_grad():
            outputs = [numbers_in(y, "shrink")[0] for y in some.outputs(model)]
        if sum(len(y) if y.dim() and y.numel() else 0 for y in outputs) != len(some):
            return order
        sizes = torch.cat([y.abs().reshape(len(y), -1).amax(1) for y in outputs])
        return torch.cat([(sizes - sizes.median()).abs().argsort(stable=True).cpu(), order[len(some) :]])

    def _has_rows(self) -> bool:
        """Whether samples can be chosen one by one: of a tensor, or of a single batch that the model takes by rows."""
        if self.inputs.tensor is not None:
            return True
        if self.targets is not None and len(self.targets) == 1 and len(self.targets[0]) != len(self):
            return False
        return self.by_rows and len(self.inputs.inputs) == 1

    def _rows(self, rows: Tensor) -> Samples:
        targets = self.targets
        if targets is not None:
            targets = targets[rows] if isinstance(targets, Tensor) else [targets[0][rows]]
        return replace(self, inputs=self.inputs.rows(rows), targets=targets)

    def _batches(self, which: slice) -> Samples:
        targets = self.targets[which] if self.targets is not None else None
        return replace(self, inputs=self.inputs.with_inputs(self.inputs.inputs[which]), targets=targets)


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
        samples += samples_in(inputs[-1])
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
