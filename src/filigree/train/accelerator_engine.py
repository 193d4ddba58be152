"""Training on an Accelerator of Hugging Face Accelerate: devices, processes, mixed precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from filigree.nn.sparse.sharding import shards_in
from filigree.optional import needed
from filigree.train import processes
from filigree.train.engine import Engine, Prepared, losing_others
from filigree.train.evaluation import device_of
from filigree.train.sharded_engine import ShardedEngine

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
                with losing_others(self.rank) if self.processes > 1 else nullcontext():
                    yield runner, wrapped, accelerator.backward
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


_MARKS = ("forward", "_original_forward", "_is_accelerate_prepared")  # what prepare_model leaves on a model


def make_engine(model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator | None) -> Engine:
    """The engine for `fit(accelerator=...)`. A model with sharded layers has its own, without an Accelerator.

    Without an Accelerator, one is made only in a process that a launcher started (`accelerate launch`, `torchrun`). In
    an ordinary process none is: Accelerate's state is global, and the first Accelerator would fix the precision of all
    that the user makes later.
    """
    if (shards := shards_in(model)) is not None:
        return ShardedEngine(model, optimizer, shards, accelerator)
    launched = processes.several() or "ACCELERATE_MIXED_PRECISION" in os.environ
    if accelerator is None and launched:
        processes.join()
        accelerator = needed("accelerate", "fit", "accelerate").Accelerator(cpu=processes.on_cpus())
    return Engine(model, optimizer) if accelerator is None else AcceleratorEngine(model, optimizer, accelerator)
