"""Dropout whose probability changes from epoch to epoch."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from filigree.dynamics.annealing import Annealing
from filigree.dynamics.horizon import horizon_of
from filigree.dynamics.schedules import LinearDecrease, as_schedule


class DropoutAnnealing(Annealing):
    """Annealed dropout (Rennie et al. 2014): every dropout's p is its own times `schedule`; call `step()` each epoch.

    Args:
        schedule: a schedule, a number or a callable epoch -> factor in [0, 1]; by default a straight line from 1 to 0.
        epochs: of the run; `fg.fit` fills it in. Needed in a loop of your own where the schedule needs its horizon.
    """

    def __init__(self, model: nn.Module, schedule: Any = None, epochs: int | None = None) -> None:
        self.schedule = LinearDecrease(1.0, 0.0) if schedule is None else as_schedule(schedule)
        self.layers = [(m, float(m.p)) for m in model.modules() if isinstance(m, _DropoutNd)]
        if not self.layers:
            raise ValueError("DropoutAnnealing: the model has no dropout.")
        self.epochs = self._given = epochs
        self.apply()

    def set_horizon(self, calls: int) -> None:
        """A run begins, or goes on, in which `step` is called so many times."""
        self.epochs = horizon_of("DropoutAnnealing", self._given, self.epoch, calls)
        self.apply()

    def apply(self) -> None:
        if self.schedule.needs_horizon and self.epochs is None:
            if self.epoch == 0:
                return  # until the run begins
            name = type(self.schedule).__name__
            raise ValueError(f"DropoutAnnealing: {name} needs to know the number of epochs: give epochs=.")
        factor = min(1.0, max(0.0, self.schedule.rate(self.epoch, self.epochs)))
        for layer, p in self.layers:
            layer.p = p * factor
