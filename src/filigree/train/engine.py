"""Where training runs: one process, on the device where the model is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from filigree.train.evaluation import device_of

Prepared = tuple[nn.Module, torch.optim.Optimizer, Callable[[Tensor], None]]


class Engine:
    """One process, on the device where the model is: the plain torch loop."""

    rank, processes = 0, 1
    divides = False
    """Whether the processes hold parts of one model: all see the same batches, and each keeps a state of its own."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.device = device_of(model)

    @contextmanager
    def prepared(self) -> Iterator[Prepared]:
        """The model to call, the optimizer to step and `backward(loss)`, for the length of the run."""
        yield self.model, self.optimizer, Tensor.backward

    def loader(self, loader: DataLoader) -> DataLoader:
        return loader

    @property
    def shard(self) -> tuple[int, int]:
        """Which part of each batch is this process's, and of how many."""
        return (0, 1) if self.divides else (self.rank, self.processes)

    def total(self, sums: Tensor) -> Tensor:
        """The sum over the processes' parts of the data."""
        return sums

    def agreed(self, flags: Tensor) -> Tensor:
        """The sum of numbers that each process has for itself."""
        return self.total(flags)

    def gather(self, value: Any) -> list[Any]:
        """One value of every process."""
        return [value]

    def states(self, own: Any) -> list[Any]:
        """The nested state of every process, to be written by the main one."""
        return [own]

    def wait(self) -> None:
        """Until every process is here."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def scaler(self) -> Any:
        """The gradient scaler of float16 training, if there is one."""
        return None


_LOST = ("gloo", "NCCL", "Connection reset", "Connection closed", "Socket")  # in what a collective that fails says


@contextmanager
def losing_others(rank: int) -> Iterator[None]:
    """Raise `ConnectionError` in one line where another process of the run is gone."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in _LOST):
            raise
        reason = " ".join(str(error).split("] ", 1)[-1].split())  # without the place in gloo's source
        raise ConnectionError(
            f"fit: process {rank} has lost another process of this run ({reason[:100]}). "
            "The last checkpoint is whole: start all of them again to resume."
        ) from None
