"""The scale of noisy activations, smaller from step to step (Moczulski 2019, 4.3.6.6)."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import nn

from filigree.dynamics.annealing import Annealing
from filigree.dynamics.schedules import as_schedule
from filigree.nn.noisy.noisy_activations import NoisyReLU, WithNoise


class NoiseAnnealing(Annealing):
    """Anneal the noise of a model: call `step()` after each batch (`fg.fit(..., callbacks=annealing)`).

    `c = max(end, start / sqrt(t + 1))`, t rising by 1 every `every` steps: from 30 to 0.5 in 720,000 steps of 200. What
    is set is c of NAN, NAH and NANIL, and sigma of NANI, NANIS and `filigree.nn.NoisyReLU`.

    Args:
        model: with noisy activations, after `fg.convert_(model, fg.Noisy(...))`.
        steps: the annealing's length, in place of `every`: t rises evenly, to `(start / end)^2 - 1` at the last of
            them, where c is `end`; short runs reach it too.
        schedule: in place of the formula, what gives the share of `start`: a callable step -> share, or a schedule such
            as `fg.LinearDecrease(1, 0)`, which needs `steps`; `fg.fit` fills in those of the run.

    Raises:
        ValueError: nothing noisy in the model; numbers out of range.
    """

    interval: Literal["epoch", "step"] = "step"

    def __init__(
        self, model: nn.Module, start: float = 30.0, end: float = 0.5, every: float = 200, steps: int | None = None,
        schedule: Any = None,
    ) -> None:  # fmt: skip
        self.layers = [
            m for m in model.modules() if isinstance(m, WithNoise) or (isinstance(m, NoisyReLU) and m.sigma != "input")
        ]
        if not self.layers:
            raise ValueError("NoiseAnnealing: the model has no noise to anneal. Convert it first, with fg.Noisy(...).")
        if not 0 < end <= start < math.inf:
            raise ValueError(f"NoiseAnnealing: expected 0 < end <= start. Got start={start}, end={end}.")
        if not every > 0 or (steps is not None and (steps < 1 or steps != int(steps))):
            raise ValueError(
                f"NoiseAnnealing: every must be positive, steps a positive integer. Got {every} and {steps}."
            )
        self.start, self.end, self.steps = start, end, steps
        self.every = every if steps is None else None
        self.schedule = None if schedule is None else as_schedule(schedule)
        self._fills_in = self.schedule is not None and self.schedule.needs_horizon and steps is None
        self.apply()

    def set_horizon(self, calls: int) -> None:
        """A run begins, or goes on, in which `step` is called so many times; `steps` that were given stay."""
        if self._fills_in:
            self.steps = self.epoch + calls
            self.apply()

    @property
    def scale(self) -> float:
        """c (or sigma) as it is now; `epoch` counts steps."""
        if self.schedule is not None:
            return self.start * max(0.0, self.schedule.rate(self.epoch, self.steps))
        if self.every is not None:
            t: float = self.epoch // self.every
        else:  # so that the last of `steps` is at the end
            t = self.epoch / max(1, (self.steps or 1) - 1) * ((self.start / self.end) ** 2 - 1)
        return max(self.end, self.start / (t + 1) ** 0.5)

    def apply(self) -> None:
        if self._fills_in and self.steps is None:
            if self.epoch == 0:
                return  # until the run begins
            raise ValueError(f"NoiseAnnealing: {type(self.schedule).__name__} needs to know the steps: give steps=.")
        scale = self.scale
        for layer in self.layers:
            if isinstance(layer, WithNoise) and layer.kind not in ("NANI", "NANIS"):
                layer.c = scale
            else:
                layer.sigma = scale
