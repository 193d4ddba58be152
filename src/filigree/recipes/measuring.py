"""What the networks of a recipe cost, timed in turns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from filigree.data import DataSet
from filigree.io import saving
from filigree.measure import cost
from filigree.measure.timing import inference, time_interleaved
from filigree.ops.sparse_rows import as_dense, rows_of
from filigree.recipes.recipe import Recipe
from filigree.train import Record

MODEL = "model.safetensors"  # in the folder of a run


def measure_together(recipe: Recipe, trained: dict[str, Path], split: DataSet, timed: bool) -> None:
    """Complete the records by what the networks cost; times are taken in turns, so that their ratios mean something."""
    networks = {method: saving.load(folder / MODEL).eval() for method, folder in trained.items()}
    size = min(recipe.training.batch_size, len(split.train.x))
    x, y = rows_of(split.train.x, slice(0, size)), split.train.y[:size]
    times = _times(list(networks.values()), x, y) if timed else [{} for _ in networks]
    for (method, folder), own in zip(trained.items(), times, strict=True):
        record = Record.load(folder)
        forward, backward = cost.macs(networks[method], as_dense(rows_of(x, slice(0, 1))))
        stored = {
            key: number
            for key, number in dataclasses.asdict(cost.stored(networks[method])).items()
            if number is not None
        }
        record.cost = stored | {"macs_forward": forward, "macs_backward": backward, "batch": size} | own
        if not timed:
            record.metrics.pop("train_seconds", None)
            record.metrics.pop("train_joules", None)
        record.save(folder)


def _times(networks: list[nn.Module], x: Tensor, y: Tensor) -> list[dict[str, Any]]:
    works = {
        "train_step_ms": [cost.training_step(network, x, y) for network in networks],
        "backward_ms": [cost.backward(network, x, y) for network in networks],
        "batch_ms": [inference(network, x) for network in networks],
        "single_ms": [inference(network, rows_of(x, slice(0, 1))) for network in networks],
    }
    columns = [[dataclasses.asdict(time) for time in time_interleaved(each, 0.2)] for each in works.values()]
    return [dict(zip(works, row, strict=True)) for row in zip(*columns, strict=True)]
