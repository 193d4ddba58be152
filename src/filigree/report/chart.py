"""Which columns of computed rows a chart shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """A column against another: a line for each distinct value of the columns `by`; `printed` are a paper's points."""

    x: str
    y: str
    by: Sequence[str] = ()
    title: str = ""
    log: bool = False
    printed: Sequence[tuple[float, float]] = ()
