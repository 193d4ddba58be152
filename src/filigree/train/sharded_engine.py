"""Training a model whose layers are divided over processes (`fg.shard_`): all of them take every step together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from filigree.nn.sparse.sharding import check_same
from filigree.topology.shards import Shards
from filigree.train import rng
from filigree.train.engine import Engine, Prepared, losing_others


class ShardedEngine(Engine):
    """All processes have the same batches, and the same random numbers: those of the first.

    What is not sharded is computed by each, with the same result, so that its gradients need no average; sharded layers
    exchange outputs and gradients themselves.
    """

    divides = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, shards: Shards, accelerator: Any) -> None:
        super().__init__(model, optimizer)
        self.shards = shards
        self.rank, self.processes = shards.rank, shards.processes
        if distributed.get_world_size() != self.processes:
            raise ValueError(
                f"fit: sharded layers must be divided over all {distributed.get_world_size()} processes. Got a group "
                f"of {self.processes}."
            )
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if accelerator is not None:
            precision = accelerator.mixed_precision
        if precision != "no":
            raise ValueError(
                f"fit: sharded layers train without mixed precision; activations= of fg.Sparse is for 16 bits. Got "
                f"{precision}."
            )
        rng.restore(self.gather(rng.capture() if self.is_main else None)[0])

    @contextmanager
    def prepared(self) -> Iterator[Prepared]:
        with losing_others(self.rank):
            check_same(self.model, self.shards, "fit")
            yield self.model, self.optimizer, Tensor.backward

    def total(self, sums: Tensor) -> Tensor:
        """Those of the first process: all decide by the same numbers, also where processors round differently."""
        first: Tensor = self.shards.objects(sums)[0]
        return first

    def agreed(self, flags: Tensor) -> Tensor:
        return self.shards.sum_(flags.clone())

    def gather(self, value: Any) -> list[Any]:
        return self.shards.objects(value)

    def states(self, own: Any) -> list[Any]:
        return self.shards.states(own)

    def wait(self) -> None:
        self.shards.wait()
