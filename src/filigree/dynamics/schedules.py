"""How the rewiring rate zeta changes from epoch to epoch (Chouliaras 2021, chapter 4). Epochs count from 0."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any

import pydantic

from filigree.config import Config, config

Rate = Annotated[float, pydantic.Field(ge=0, le=1)]


class Schedule(Config):
    """Base of schedules: `rate(epoch, epochs)` gives zeta. Sums and products of schedules are schedules."""

    def rate(self, epoch: int, epochs: int | None) -> float:
        """Zeta after epoch `epoch` of a run of `epochs` (None: unknown)."""
        raise NotImplementedError

    @property
    def needs_horizon(self) -> bool:
        """Whether the number of epochs must be known."""
        return False

    def __add__(self, other: Schedule | float) -> Schedule:
        return Sum(self, other)

    def __mul__(self, other: Schedule | float) -> Schedule:
        return Product(self, other)

    __radd__, __rmul__ = __add__, __mul__


@config
class Constant(Schedule):
    """SET: zeta_i = zeta (Chouliaras 2021, 3.5.1)."""

    zeta: Rate = 0.3

    def rate(self, epoch: int, epochs: int | None) -> float:
        return self.zeta


@config
class Static(Schedule):
    """No rewiring at all: the static sparse network, the baseline of every evolving one."""

    def rate(self, epoch: int, epochs: int | None) -> float:
        return 0.0


@config
class LinearDecrease(Schedule):
    """LDV: zeta_i = zeta_min + (zeta_max - zeta_min) (E - i) / E (Chouliaras 2021, 4.3)."""

    zeta_max: Rate = 0.3
    zeta_min: Rate = 0.01

    def rate(self, epoch: int, epochs: int | None) -> float:
        assert epochs is not None
        return self.zeta_min + (self.zeta_max - self.zeta_min) * (epochs - epoch) / epochs

    @property
    def needs_horizon(self) -> bool:
        return True


@config
class Oscillation(Schedule):
    """OSV: zeta_i = (max + min) / 2 + (max - min) / 2 cos(2 pi i / T), T = 2 E / (3 + 2 k) (Chouliaras 2021, 4.4)."""

    zeta_max: Rate = 0.3
    zeta_min: Rate = 0.01
    k: Annotated[int, pydantic.Field(ge=0)] = 1

    def rate(self, epoch: int, epochs: int | None) -> float:
        assert epochs is not None
        period = 2 * epochs / (3 + 2 * self.k)
        middle, swing = (self.zeta_max + self.zeta_min) / 2, (self.zeta_max - self.zeta_min) / 2
        return middle + swing * math.cos(2 * math.pi * epoch / period)

    @property
    def needs_horizon(self) -> bool:
        return True


@config
class ExponentialDecay(Schedule):
    """EXD: zeta_i = zeta (1 - interest)^i (Chouliaras 2021, 4.5).

    The decay does not scale with the run: at interest 0.01 a run of 30 epochs ends at 0.22, hardly different from SET.
    With `horizon` the interest is that of a run of so many epochs (the papers': 500), and a run of E epochs
    decays equally from end to end: interest' = 1 - (1 - interest)^(horizon / E), 0.154 at 30.
    """

    zeta: Rate = 0.3
    interest: Rate = 0.01
    horizon: Annotated[int, pydantic.Field(ge=1)] | None = None

    def rate(self, epoch: int, epochs: int | None) -> float:
        if self.horizon is None:
            return self.zeta * (1 - self.interest) ** epoch
        assert epochs is not None
        return self.zeta * (1 - self.interest) ** (epoch * self.horizon / epochs)

    @property
    def needs_horizon(self) -> bool:
        return self.horizon is not None


@config
class CosineDecay(Schedule):
    """RigL: zeta_i = zeta / 2 (1 + cos(pi i / (end E))) while i < end E, then 0 (Evci et al. 2020, section 3).

    Args:
        zeta: alpha, the first rate. end: T_end as a share of the run, after which nothing is rewired.
    """

    zeta: Rate = 0.3
    end: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.75

    def rate(self, epoch: int, epochs: int | None) -> float:
        assert epochs is not None
        done = epoch / (self.end * epochs)
        return self.zeta / 2 * (1 + math.cos(math.pi * done)) if done < 1 else 0.0

    @property
    def needs_horizon(self) -> bool:
        return True


@config
class Sum(Schedule):
    """zeta_i = a_i + b_i; b may be a number."""

    a: Schedule
    b: Schedule | float

    def rate(self, epoch: int, epochs: int | None) -> float:
        return self.a.rate(epoch, epochs) + _rate(self.b, epoch, epochs)

    @property
    def needs_horizon(self) -> bool:
        return self.a.needs_horizon or _needs_horizon(self.b)


@config
class Product(Schedule):
    """zeta_i = a_i b_i; b may be a number."""

    a: Schedule
    b: Schedule | float

    def rate(self, epoch: int, epochs: int | None) -> float:
        return self.a.rate(epoch, epochs) * _rate(self.b, epoch, epochs)

    @property
    def needs_horizon(self) -> bool:
        return self.a.needs_horizon or _needs_horizon(self.b)


@config
class Sequence(Schedule):
    """One schedule after another: `Sequence([(SET, 10), (EXD, None)])` runs the first for 10 epochs, then the second.

    Each begins at its own epoch 0 and has its own length as its horizon; the last may be open (None), and
    stays where it ended when its length is over.
    """

    parts: list[tuple[Schedule, int | None]]

    def __post_init__(self) -> None:
        if not self.parts or any(length is None or length < 1 for _, length in self.parts[:-1]):
            raise ValueError(f"Sequence: each part but the last needs a length of at least 1 epoch. Got {self.parts}.")

    def rate(self, epoch: int, epochs: int | None) -> float:
        start = 0
        for schedule, length in self.parts[:-1]:
            assert length is not None
            if epoch < start + length:
                return schedule.rate(epoch - start, length)
            start += length
        last, length = self.parts[-1]
        horizon = length or (None if epochs is None else max(epochs - start, 1))
        return last.rate(epoch - start if length is None else min(epoch - start, length), horizon)

    @property
    def needs_horizon(self) -> bool:
        last, length = self.parts[-1]
        return length is None and last.needs_horizon


@config
class Function(Schedule):
    """Any callable `f(epoch) -> zeta` or `f(epoch, epochs) -> zeta`; `Evolution` makes one of a plain callable."""

    f: Callable[..., float]

    def rate(self, epoch: int, epochs: int | None) -> float:
        return float(self.f(epoch) if _takes(self.f) == 1 else self.f(epoch, epochs))


@config
class Adaptive(Schedule):
    """zeta from a training metric (future work in Chouliaras 2021, 6.2): rewire as long as there is much to learn.

    zeta_i = zeta_min + (zeta_max - zeta_min) min(1, m_i / m_0), with m_i the exponential moving average of the metric
    (weight `smoothing` on the past) and m_0 its first value. With `mode="max"` (accuracies) m is 1 - metric.

    Args:
        metric: the key read from `Evolution.step(metrics)`; a missing one is refused by name.
    """

    metric: str = "train_loss"
    zeta_max: Rate = 0.3
    zeta_min: Rate = 0.01
    smoothing: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.5
    mode: Annotated[str, pydantic.Field(pattern="^(min|max)$")] = "min"

    def rate(self, epoch: int, epochs: int | None) -> float:
        raise ValueError("Adaptive: it reads a metric, so it cannot be part of a sum, product or sequence.")

    def follow(self, metrics: dict[str, Any] | None, memory: dict[str, float]) -> float:
        """The rate from this epoch's metrics; `memory` holds the first and the averaged value from call to call."""
        if not metrics or metrics.get(self.metric) is None:
            have = ", ".join(metrics or {}) or "none"
            raise ValueError(f"Adaptive: step(metrics) must hold {self.metric!r}. Got {have}.")
        value = float(metrics[self.metric])
        value = 1 - value if self.mode == "max" else value
        if math.isfinite(value):  # another epoch says nothing
            memory["average"] = self.smoothing * memory.get("average", value) + (1 - self.smoothing) * value
            memory.setdefault("first", value)
        if not memory:
            return self.zeta_max
        share = memory["average"] / memory["first"] if memory["first"] > 0 else 0.0
        return self.zeta_min + (self.zeta_max - self.zeta_min) * min(1.0, max(0.0, share))


def as_schedule(given: Any) -> Schedule:
    """A schedule from a schedule, a number or a callable."""
    if isinstance(given, Schedule):
        return given
    if isinstance(given, int | float):
        return Constant(given)
    if callable(given):
        return Function(given)
    raise TypeError(f"expected a schedule, a number or a callable f(epoch) -> zeta. Got {given!r}.")


def _rate(term: Schedule | float, epoch: int, epochs: int | None) -> float:
    return term.rate(epoch, epochs) if isinstance(term, Schedule) else term


def _needs_horizon(term: Schedule | float) -> bool:
    return isinstance(term, Schedule) and term.needs_horizon


def _takes(f: Callable[..., float]) -> int:
    return len(inspect.signature(f).parameters)
