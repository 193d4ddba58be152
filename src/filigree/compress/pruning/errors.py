"""The error of a smaller network's outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.config import one_line
from filigree.convert import inference_context
from filigree.outputs import numbers_in

MOST = 1 << 28  # bytes of the original's outputs that are kept


class OutputError:
    """`|Y' - Y| / |Y - mean Y|` of a network's outputs Y' on data, Y the original's; of several outputs, the largest.

    Args:
        where: what a report says of the data.
    """

    def __init__(self, data: Calibration, where: str = "") -> None:
        self.where, self.data, self._bytes = where, data, 0
        self._outputs: list[list[Tensor]] = []
        self._sizes: list[float] = []

    @classmethod
    def of(cls, model: nn.Module, data: Calibration) -> OutputError:
        """The error of a model's outputs, which are computed now."""
        error = cls(data)
        for output in _outputs(model, data):
            error.add(output)
        return error

    def add(self, output: Any) -> None:
        """What the original returns for the next chunk of the data. Where it takes too much, the first chunks do."""
        if self._bytes < MOST:
            numbers = [tensor.detach().clone() for tensor in numbers_in(output, "pruning")]
            self._bytes += sum(tensor.numel() * tensor.element_size() for tensor in numbers)
            self._outputs.append(numbers)

    def __call__(self, network: nn.Module) -> float:
        if not self._sizes:
            self._sizes = [_size(parts) for parts in zip(*self._outputs, strict=True)]
        lost = [0.0] * len(self._sizes)
        for expected, outputs in zip(self._outputs, _outputs(network, self.data), strict=False):
            for number, (output, y) in enumerate(zip(outputs, expected, strict=True)):
                lost[number] += float((output - y).abs().double().square().sum())
        return max(total**0.5 / size for total, size in zip(lost, self._sizes, strict=True))


def _outputs(model: nn.Module, data: Calibration) -> Iterator[list[Tensor]]:
    """All that the model returns in evaluation mode, chunk by chunk."""
    for chunk in data.chunks():
        with inference_context(model):
            try:
                output = data.call(model, chunk)
            except Exception as error:
                raise ValueError(f"pruning: the model does not run on the data: {one_line(error)}") from error
        yield numbers_in(output, "pruning")


def _size(parts: tuple[Tensor, ...]) -> float:
    """`|Y - mean Y|`, the mean over all samples; of a constant its size."""
    if len({part.shape[1:] for part in parts}) == 1 and parts[0].dim():
        mean = torch.cat(parts).mean(0)
    else:  # of outputs of several sizes
        mean = torch.cat([part.flatten() for part in parts]).mean()
    spread = sum(float((part - mean).abs().double().square().sum()) for part in parts)
    size = sum(float(part.abs().double().square().sum()) for part in parts)
    return max(spread**0.5, 1e-6 * size**0.5, 1e-30)
