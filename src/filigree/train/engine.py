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

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.device = device_of(model)

    @contextmanager
    def prepared(self) -> Iterator[Prepared]:
        """The model to call, the optimizer to step and `backward(loss)`, for the length of the run."""
        yield self.model, self.optimizer, Tensor.backward

    def loader(self, loader: DataLoader) -> DataLoader:
        return loader

    def total(self, sums: Tensor) -> Tensor:
        """The sum over the processes."""
        return sums

    def gather(self, value: Any) -> list[Any]:
        """One value of every process."""
        return [value]

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
