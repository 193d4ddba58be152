"""What an asymmetric network keeps, from epoch to epoch."""

from __future__ import annotations

from torch import nn

from filigree.dynamics.annealing import Annealing
from filigree.dynamics.horizon import horizon_of
from filigree.nn.asymmetric.asymmetric_linear import Asymmetrical


class SelectionSchedule(Annealing):
    """Let the k of a network's `fg.Asymmetric` layers follow their schedules: call `step()` after each epoch.

        fg.convert_(model, fg.Asymmetric.topk(fg.LinearDecrease(1.0, 0.05)))
        selection = fg.SelectionSchedule(model, epochs=20)      # epoch 0 applies at once

    Args:
        epochs: of the run; `fg.fit` fills it in. Needed in a loop of your own where a schedule needs its horizon.
    """

    def __init__(self, model: nn.Module, epochs: int | None = None) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, Asymmetrical)]
        if not self.layers:
            raise ValueError("SelectionSchedule: the model has no layer converted by fg.Asymmetric.")
        self.epochs = self._given = epochs
        self.apply()

    def set_horizon(self, calls: int) -> None:
        """A run begins, or goes on, in which `step` is called so many times."""
        self.epochs = horizon_of("SelectionSchedule", self._given, self.epoch, calls)
        self.apply()

    @staticmethod
    def is_needed(model: nn.Module) -> bool:
        """Whether anything in the model's choices changes with the epochs."""
        rules = [module.config.rule for module in model.modules() if isinstance(module, Asymmetrical)]
        functions = [f for r in rules for f in (r.forward, r.sensitivity, r.inputs, r.weights) if f is not None]
        return any(function.changes for function in functions)

    def apply(self) -> None:
        for layer in self.layers:
            layer.set_epoch(self.epoch, self.epochs)
