"""The callbacks of `fg.fit` driven by a Lightning `Trainer`."""

from __future__ import annotations

import math
import sys
from typing import Any

from filigree.optional import absent

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise absent(error, __name__, "lightning") from None

from filigree.integrations.driver import Driver


class Dynamics(Callback):
    """Steps `fg.Evolution`, annealings, schedulers and hooks while Lightning trains, as `fg.fit` does.

    `Trainer(callbacks=[Dynamics(lambda model, optimizer: fg.SET(model, optimizer, 0.3))])`. Their states are part of
    Lightning's checkpoints, and `Trainer.fit(..., ckpt_path=...)` goes on from them. A rewiring is done when the next
    epoch (or step) begins: a checkpoint that is written after an epoch holds the network as it was validated.

    Args:
        callbacks: one or a list, see `filigree.train.stepping`; `model` is the LightningModule, the row of an epoch
            holds what it has logged. The module has one optimizer, and its training step returns the loss.
    """

    def __init__(self, callbacks: Any = ()) -> None:
        self.driver = Driver(callbacks)
        self._metrics: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise ValueError(f"Dynamics: the module must have one optimizer. Got {len(trainer.optimizers)}.")
        where = trainer.global_step, trainer.current_epoch
        self.driver.begin(pl_module, trainer.optimizers[0], *_horizon(trainer), *where)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.driver.begin_epoch(trainer.current_epoch, self._metrics)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.driver.begin_step()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self.driver.state.step:  # gradients may be gathered over several batches
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self.driver.end_step(trainer.global_step, loss)
            trainer.should_stop |= self.driver.state.stop

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer)  # a checkpoint may be written before the epoch's end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer)
        self.driver.end_epoch(trainer.current_epoch, self._metrics)
        trainer.should_stop |= self.driver.state.stop

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.driver.end()

    def _read(self, trainer: Trainer) -> None:
        self._metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"driver": self.driver.state_dict(), "metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.driver.load_state_dict(state_dict["driver"])
        self._metrics = state_dict["metrics"]


def _horizon(trainer: Trainer) -> tuple[int, int | None]:
    """How many epochs and steps the whole run has; `sys.maxsize` and None where the trainer does not know."""
    total, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    steps = int(total) if 0 < total < math.inf else None
    limit = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else sys.maxsize
    if steps is None or batches == math.inf:
        return limit, steps
    return min(limit, math.ceil(steps / math.ceil(batches / trainer.accumulate_grad_batches))), steps
