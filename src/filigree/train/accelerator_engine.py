"""Training on an Accelerator of Hugging Face Accelerate: devices, processes, mixed precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from filigree.optional import needed
from filigree.train import processes
from filigree.train.engine import Engine, Prepared
from filigree.train.evaluation import device_of

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]


class AcceleratorEngine(Engine):
    """The user's Accelerator. `model` and `optimizer` stay the user's own objects, moved but not replaced.

    Where the Accelerator has nothing to do in a step (one process, no gradient scaling), its wrappers are left out: a
    wrapped optimizer and `Accelerator.backward` cost 0.1 ms a step, a tenth of a small sparse network's.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
        if accelerator.gradient_accumulation_steps != 1:
            raise ValueError(
                "fit: the Accelerator's gradient_accumulation_steps must be 1. "
                f"Got {accelerator.gradient_accumulation_steps}."
            )
        self.accelerator, self._given = accelerator, (model, optimizer)
        self.model = accelerator.unwrap_model(model)
        accelerated = needed("accelerate.optimizer", "fit", "accelerate").AcceleratedOptimizer
        self.optimizer = optimizer.optimizer if isinstance(optimizer, accelerated) else optimizer
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        if accelerator.device_placement and device_of(self.model) != accelerator.device:
            self.model.to(accelerator.device)
            self.optimizer.load_state_dict(self.optimizer.state_dict())  # its state follows the parameters
        self.device = device_of(self.model)

    @contextmanager
    def prepared(self) -> Iterator[Prepared]:
        accelerator, (model, optimizer) = self.accelerator, self._given
        before = {key: vars(model)[key] for key in _MARKS if key in vars(model)}
        runner = accelerator.prepare_model(model, device_placement=False)
        try:
            if self.processes == 1 and accelerator.scaler is None:
                yield runner, self.optimizer, Tensor.backward
            else:
                wrapped = accelerator.prepare_optimizer(optimizer, device_placement=False)
                yield runner, wrapped, accelerator.backward
        except RuntimeError as error:
            if self.processes == 1 or not any(word in str(error) for word in _LOST):
                raise
            reason = " ".join(str(error).split("] ", 1)[-1].split())  # without the place in gloo's source
            raise ConnectionError(
                f"fit: process {self.rank} has lost another process of this run ({reason[:100]}). "
                "The last checkpoint is whole: start all of them again to resume."
            ) from None
        finally:  # mixed precision replaces the model's own forward: after the run it is the user's model again
            for key in _MARKS:
                vars(model).pop(key, None)
            vars(model).update(before)

    def loader(self, loader: DataLoader) -> DataLoader:
        return self.accelerator.prepare_data_loader(loader) if self.processes > 1 else loader

    def total(self, sums: Tensor) -> Tensor:
        return self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu() if self.processes > 1 else sums

    def gather(self, value: Any) -> list[Any]:
        return needed("accelerate.utils", "fit", "accelerate").gather_object([value])

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    @property
    def scaler(self) -> Any:
        return self.accelerator.scaler


_LOST = ("gloo", "NCCL", "Connection reset", "Connection closed", "Socket")  # in what a collective that fails says
_MARKS = ("forward", "_original_forward", "_is_accelerate_prepared")  # what prepare_model leaves on a model


def make_engine(model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator | None) -> Engine:
    """The engine for `fit(accelerator=...)`.

    Without an Accelerator, one is made only in a process that a launcher started (`accelerate launch`, `torchrun`). In
    an ordinary process none is: Accelerate's state is global, and the first Accelerator would fix the precision of all
    that the user makes later.
    """
    launched = processes.several() or "ACCELERATE_MIXED_PRECISION" in os.environ
    if accelerator is None and launched:
        accelerator = needed("accelerate", "fit", "accelerate").Accelerator(cpu=processes.on_cpus())
    return Engine(model, optimizer) if accelerator is None else AcceleratorEngine(model, optimizer, accelerator)
