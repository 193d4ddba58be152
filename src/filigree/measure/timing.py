"""Timing calls against one another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from filigree.ops import kernels


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median of many runs, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ms ({self.low:.3g} - {self.high:.3g})"


def time_interleaved(works: Sequence[Callable[[], Any]], seconds: float = 0.5, least: int = 5) -> list[Timing]:
    """Time calls against one another: in turns, so that a noisy machine is noisy for all.

    Each is warmed up, then run in blocks of about 5 ms in turns until each has had `seconds` (and `least` blocks).
    Before a block come a pause and an untimed call: threads that other libraries leave spinning would disturb it.
    Denormal numbers are flushed to zero meanwhile: a memorised batch makes gradients of 1e-39 and slow steps of them.
    """
    kernels.flush_denormals(True)
    try:
        repeats = []
        for work in works:
            work()
            began = time.perf_counter()
            work()
            repeats.append(max(1, round(0.005 / (time.perf_counter() - began))))
        times: list[list[float]] = [[] for _ in works]
        ends = time.perf_counter() + seconds * len(works)
        while time.perf_counter() < ends or len(times[0]) < least:
            for work, repeat, mine in zip(works, repeats, times, strict=True):
                time.sleep(0.005)
                work()
                began = time.perf_counter()
                for _ in range(repeat):
                    work()
                mine.append((time.perf_counter() - began) / repeat * 1e3)
    finally:
        kernels.flush_denormals(False)
    return [_timing(mine) for mine in times]


def _timing(milliseconds: list[float]) -> Timing:
    tenths = statistics.quantiles(milliseconds, n=10, method="inclusive")
    return Timing(statistics.median(milliseconds), tenths[0], tenths[-1])
