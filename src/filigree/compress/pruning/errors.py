"""The error of a smaller network's outputs."""

from __future__ import annotations

from collections.abc import Iterator

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

    def __init__(self, model: nn.Module, data: Calibration, where: str = "") -> None:
        self.where = where
        self._data, self._outputs = data, []
        kept = 0
        for outputs in _outputs(model, data):
            self._outputs.append([output.detach() for output in outputs])
            kept += sum(output.numel() * output.element_size() for output in outputs)
            if kept > MOST:  # the first of the data then stand for all
                break
        self._sizes = [_size(parts) for parts in zip(*self._outputs, strict=True)]

    def __call__(self, network: nn.Module) -> float:
        lost = [0.0] * len(self._sizes)
        for expected, outputs in zip(self._outputs, _outputs(network, self._data), strict=False):
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
            numbers = numbers_in(output, "pruning")
        yield numbers


def _size(parts: tuple[Tensor, ...]) -> float:
    """`|Y - mean Y|`, the mean over all samples; of a constant its size."""
    if len({part.shape[1:] for part in parts}) == 1 and parts[0].dim():
        mean = torch.cat(parts).mean(0)
    else:  # of outputs of several sizes
        mean = torch.cat([part.flatten() for part in parts]).mean()
    spread = sum(float((part - mean).abs().double().square().sum()) for part in parts)
    size = sum(float(part.abs().double().square().sum()) for part in parts)
    return max(spread**0.5, 1e-6 * size**0.5, 1e-30)
