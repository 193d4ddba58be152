"""Whether a changed network is faster: measured in turns with the one that it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from filigree.calibration import Calibration
from filigree.measure.timing import Timing, time_interleaved
from filigree.modes import evaluating

SAME = 0.02  # a difference of less is none


def in_turns(before: nn.Module, after: nn.Module, data: Calibration, seconds: float = 0.05) -> tuple[Timing, Timing]:
    """How long two networks take for the first chunk of the data, in evaluation mode, block by block in turns."""
    with evaluating(before), evaluating(after):
        timings = time_interleaved([_run(network, data) for network in (before, after)], seconds)
    return timings[0], timings[1]


def _run(network: nn.Module, data: Calibration) -> Callable[[], Any]:
    call = data.repeatable(network, data.chunks()[0])

    def run() -> Any:
        with torch.inference_mode():
            return call()

    return run


def speed(before: nn.Module, after: nn.Module, data: Calibration) -> str:
    """A line that says how long both take, for one sample and for 128 (of batches: for the first one)."""
    if data.tensor is None:
        return f"first batch: {_verdict(*in_turns(before, after, data))}"
    parts = []
    for batch in (1, 128):
        inputs = data[torch.arange(batch) % len(data)]
        parts.append(f"batch {batch}: {_verdict(*in_turns(before, after, inputs))}")
    return "; ".join(parts)


def _verdict(before: Timing, after: Timing) -> str:
    ratio = before.median / after.median
    word = f"{ratio:.1f}x faster" if ratio > 1 + SAME else f"{1 / ratio:.1f}x slower" if ratio < 1 - SAME else "as fast"
    return f"{before.median:.3g} -> {after.median:.3g} ms ({word})"
