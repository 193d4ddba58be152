"""The level of mollifying networks, lower from step to step (Moczulski 2019, 4.4.3.3)."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import nn

from filigree.dynamics.annealing import Annealing
from filigree.nn.mollified.mollified_block import MollifiedModule
from filigree.nn.mollified.mollified_rnn import MollifiedGates


class MollificationAnnealing(Annealing):
    """Anneal a mollifying network: `p^l = 1 - exp(-k v l / (t L))` for block l of L after t updates (4.31, where the
    printed v^l must be v times l: "lower layers anneal faster"), v a moving average of the loss.

    All blocks start at p = 1; once the expected number of skipped blocks, the sum of p, is at most `stop`, all are set
    to 0 for good. In `fg.fit(..., callbacks=annealing)` it steps with every update; in a loop of your own call
    `annealing.step(loss)` after each.

    Args:
        model: after `fg.convert_(model, fg.Mollified(...))`; the blocks count in the order of its modules.
        k: with a loss near v, block L is half annealed after `k v / log 2` updates.
        stop: delta, the threshold.
        loss: whose moving average: "training", each batch, or "validation", each epoch (of the history's `val_loss`).
        average: the share that the average keeps of itself. Losses that are not finite are passed over; negative ones
            (of densities) are an error, since 4.31 has no meaning for them.

    Raises:
        ValueError: nothing mollified in the model; numbers out of range.
    """

    interval: Literal["epoch", "step"] = "step"

    def __init__(
        self, model: nn.Module, k: float = 1000.0, stop: float = 0.01,
        loss: Literal["training", "validation"] = "training", average: float = 0.99,
    ) -> None:  # fmt: skip
        names = {id(m): name for name, m in model.named_modules()}
        inside = {
            id(m) for block in model.modules() if isinstance(block, MollifiedModule) for m in list(block.modules())[1:]
        }
        self.layers = [m for m in model.modules() if isinstance(m, MollifiedModule) and id(m) not in inside]
        if not self.layers:
            raise ValueError(
                "MollificationAnnealing: the model has no blocks. Convert it first, with fg.Mollified(...)."
            )
        self.numbers: list[int] = []  # of the blocks; both directions of a recurrent layer are one
        for layer in self.layers:
            backwards = names[id(layer)].endswith("_reverse")
            self.numbers.append((self.numbers[-1] if self.numbers else 0) + (0 if backwards else 1))
        in_range = 0 <= k < math.inf and stop >= 0 and 0 <= average < 1
        if not in_range or loss not in ("training", "validation"):
            raise ValueError(
                "MollificationAnnealing: expected k and stop of at least 0, average in [0, 1), loss 'training' or "
                f"'validation'. Got k={k}, stop={stop}, average={average}, loss={loss!r}."
            )
        self.k, self.stop, self.loss, self.average = k, stop, loss, average
        self.value: float | None = None
        self.done = False
        self.apply()

    def levels(self) -> list[float]:
        """p of each block now."""
        if self.done:
            return [0.0] * len(self.layers)
        if self.epoch == 0 or self.value is None:
            return [1.0] * len(self.layers)
        depth = self.numbers[-1]
        each = [1 - math.exp(-self.k * self.value * number / (self.epoch * depth)) for number in self.numbers]
        self.done = sum(each) <= self.stop
        return [0.0] * len(each) if self.done else each

    def apply(self) -> None:
        for layer, level in zip(self.layers, self.levels(), strict=True):
            layer.p = level
            if isinstance(layer, MollifiedGates):
                layer.step = max(1, self.epoch)

    def step(self, loss: Any = None) -> None:
        """An update is over, and this was its loss (None: the average stays), read if it is the one to follow."""
        if loss is None and self.value is None and self.loss == "training":
            raise ValueError("MollificationAnnealing: step needs the loss of the update.")
        if loss is not None and self.loss == "training":
            self._look_at(float(loss))
        self.epoch += 1
        self.apply()

    def _look_at(self, loss: float) -> None:
        if loss < 0:
            raise ValueError(f"MollificationAnnealing: the loss must be at least 0 (4.31). Got {loss}.")
        if not math.isfinite(loss):
            return
        self.value = loss if self.value is None else self.average * self.value + (1 - self.average) * loss

    def on_epoch_end(self, state: Any) -> None:
        if self.loss == "validation":
            row = state.history[-1]
            if "val_loss" not in row:
                raise ValueError("MollificationAnnealing: loss='validation' needs validation data. Give them to fit.")
            self._look_at(float(row["val_loss"]))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"value": self.value, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.done = state["value"], bool(state["done"])
        super().load_state_dict(state)
