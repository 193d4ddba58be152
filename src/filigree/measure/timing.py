"""Timing calls against one another, in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from filigree.ops.denormals import without_denormals


@dataclass(frozen=True)
class Timing:
    """The milliseconds of a call: the median of many runs, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ms ({self.low:.3g} - {self.high:.3g})"


_LONG = 0.02  # seconds of a call that what ran before does not disturb


def time_interleaved(
    works: Sequence[Callable[[], Any]], seconds: float = 0.5, least: int = 5, beyond: float = math.inf
) -> list[Timing]:
    """Time calls against one another: they run in turns, so that a noisy machine is noisy for all of them.

    Each call is warmed up, then run in blocks of about 5 ms, in turns, until each has had `seconds` and `least` blocks.
    A pause and an untimed call precede each block, since threads that other libraries leave spinning would disturb it;
    long calls go without. What takes more than `beyond` times the fastest one's in the first block has no further ones.
    Denormal numbers are flushed to zero meanwhile: a memorised batch makes gradients of 1e-39 and slow steps of them.

    Returns:
        A `Timing` for each call, in their order.
    """
    with without_denormals():
        lengths = []
        for work in works:
            work()
            began = time.perf_counter()
            work()
            lengths.append(time.perf_counter() - began)
        times: list[list[float]] = [[] for _ in works]
        running, ends = list(range(len(works))), time.perf_counter() + seconds * len(works)
        while time.perf_counter() < ends or len(times[running[0]]) < least:
            for number in running:
                work, repeat = works[number], max(1, round(0.005 / lengths[number]))
                time.sleep(0.005)
                if lengths[number] < _LONG:
                    work()
                began = time.perf_counter()
                for _ in range(repeat):
                    work()
                times[number].append((time.perf_counter() - began) / repeat * 1e3)
            fastest = min(times[number][0] for number in running)
            slow = {number for number in running if times[number][0] > beyond * fastest}
            running, ends = [number for number in running if number not in slow], ends - seconds * len(slow)
    return [_timing(of_work) for of_work in times]


def inference(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    """A call that runs the model on `x` without gradients."""

    def run() -> Any:
        with torch.inference_mode():
            return model(x)

    return run


def _timing(milliseconds: list[float]) -> Timing:
    if len(milliseconds) == 1:
        return Timing(*milliseconds * 3)
    tenths = statistics.quantiles(milliseconds, n=10, method="inclusive")
    return Timing(statistics.median(milliseconds), tenths[0], tenths[-1])
