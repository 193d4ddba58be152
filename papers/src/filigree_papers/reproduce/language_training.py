"""Moczulski 2019: language models on contiguous streams of text, noisy and mollified."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.data import text as texts
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.steps import Halving, train_steps


def language(
    case: str, convert: Callable[[nn.Module], Any], model: nn.Module, text: texts.Text, steps: int, length: int,
    batch_size: int, optimizer_of: Callable[[Any], torch.optim.Optimizer], clip: float, looks: int, held: int,
    halve: int | None = None,
) -> Rows:  # fmt: skip
    """Train a language model on contiguous streams; rows of validation and test losses, in nats."""
    steppers = list(convert(model) or [])
    optimizer = optimizer_of(model.parameters())
    if halve is not None:
        steppers.append(Halving(optimizer, halve, 1327))
    pieces = texts.language_model_batches(text.train, batch_size, length)
    judges = {
        name: texts.language_model_batches(part[:held], batch_size, length)
        for name, part in (("validation", text.validation), ("test", text.test))
    }

    def loss(net: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        return F.cross_entropy(net(x).flatten(0, 1), y.flatten())

    def look(net: Any) -> dict[str, float]:
        losses = {}
        for name, (x, y) in judges.items():
            net.reset()
            losses[name] = statistics.fmean(float(loss(net, (x[i], y[i]))) for i in range(len(x)))
        return losses

    total = len(pieces[0])
    rows = train_steps(
        model, lambda step: (pieces[0][step % total], pieces[1][step % total]), loss, optimizer, steps,
        look, looks, steppers, clip,
    )  # fmt: skip
    return [{"activation": case, **row} for row in rows]


def perplexities(row: dict[str, Any]) -> dict[str, Any]:
    return row | {f"{key} perplexity": math.exp(row[key]) for key in ("validation", "test")}


def rescaled(row: dict[str, Any], keys: tuple[str, ...], scale: float, unit: str) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in keys} | {f"{key} {unit}": row[key] * scale for key in keys}
