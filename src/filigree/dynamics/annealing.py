"""What all annealings share: a value of the model that follows the epochs, or the steps."""

from __future__ import annotations

from typing import Any, Literal


class Annealing:
    """Base of the objects whose `step()` is called after each epoch (or step) and whose state is where they are.

    Subclasses implement `apply`, which sets the model's values for `self.epoch`, and call it once in `__init__`.

    Attributes:
        epoch: the calls of `step` so far. interval: when a trainer calls it, after each "epoch" or each "step".
    """

    epoch: int = 0
    interval: Literal["epoch", "step"] = "epoch"

    def apply(self) -> None:
        raise NotImplementedError

    def step(self, metrics: dict[str, Any] | None = None) -> None:
        """An epoch (or a step) is over."""
        self.epoch += 1
        self.apply()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.apply()
