"""Evolution and annealings driven by a Lightning `Trainer`."""

from __future__ import annotations

from typing import Any

from filigree.optional import absent

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise absent(error, __name__, "lightning") from None

from filigree.integrations.steppers import Steppers


class Dynamics(Callback):
    """Steps `fg.Evolution`, `fg.NoiseAnnealing`, `fg.MollificationAnnealing` and their kin while Lightning trains.

    `Trainer(callbacks=[Dynamics(each_epoch=lambda model, optimizer: fg.Evolution(model, optimizer, 0.3))])`. Their
    states are part of Lightning's checkpoints, and `Trainer.fit(..., ckpt_path=...)` goes on from them.

    Args:
        each_epoch, each_step: see `filigree.integrations.steppers.Steppers`; `model` is the LightningModule, metrics
            are what it has logged. The module has one optimizer, and its training step returns the loss.
    """

    def __init__(self, each_epoch: Any = (), each_step: Any = ()) -> None:
        self.steppers, self._steps = Steppers(each_epoch, each_step), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise ValueError(f"Dynamics: the module must have one optimizer. Got {len(trainer.optimizers)}.")
        self.steppers.begin(pl_module, trainer.optimizers[0])
        self._steps = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steppers.begin_epoch(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._steps:  # gradients may be gathered over several batches
            self._steps = trainer.global_step
            self.steppers.end_step(outputs.get("loss") if isinstance(outputs, dict) else outputs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steppers.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        return self.steppers.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steppers.load_state_dict(state_dict)
