"""Training: step by step on batches that are made when they are needed, with evaluations in between; and by epochs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree import data
from filigree.compress.compression import compress_
from filigree.train import evaluate, fit
from filigree_papers.reproduce.experiment import Rows

Batch = tuple[Tensor, ...]
_only_first = ContextVar("_only_first", default=False)


@contextmanager
def first_evaluation() -> Iterator[None]:
    """`train_steps` ends after its first evaluation meanwhile."""
    token = _only_first.set(True)
    try:
        yield
    finally:
        _only_first.reset(token)


def train_steps(
    model: nn.Module, batch: Callable[[int], Batch], loss: Callable[[nn.Module, Batch], Tensor],
    optimizer: torch.optim.Optimizer, steps: int, look: Callable[[nn.Module], dict[str, float]], looks: int = 10,
    each_step: Sequence[Any] = (), clip: float | None = None,
) -> Rows:  # fmt: skip
    """Train for `steps` steps, with `looks` evaluations at equal distances.

    Args:
        batch: a function from the number of the step to a batch.
        loss: a function from the model and a batch to the loss.
        look: evaluates the model, in eval mode and without gradients.
        each_step: objects whose `step(loss)` is called after each update.

    Returns:
        A row for each evaluation: the step, the mean training loss since the last one, and what `look` returned.
    """
    rows: Rows = []
    total, count = 0.0, 0
    model.train()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        value = loss(model, batch(step - 1))
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        total, count = total + float(value.detach()), count + 1
        for each in each_step:
            each.step(value.detach())
        if step * looks // steps > (step - 1) * looks // steps:
            model.eval()
            with torch.no_grad():
                rows.append({"step": str(step), "training loss": total / count, **look(model)})
            model.train()
            total, count = 0.0, 0
            if _only_first.get():
                break
    return rows


def fewer(split: data.DataSet, quick: bool, samples: int = 6000) -> data.DataSet:
    """The data of a quick run: the first training samples, and 1,000 of each other part; else all of them."""
    if not quick:
        return split
    train, held, test = split.train, split.validation, split.test
    return replace(
        split, train=data.Split(train.x[:samples], train.y[:samples]), test=data.Split(test.x[:1000], test.y[:1000]),
        validation=None if held is None else data.Split(held.x[:1000], held.y[:1000]),
    )  # fmt: skip


def adam(model: nn.Module, split: data.DataSet, epochs: int, seed: int) -> nn.Module:
    """The model, trained by Adam at 0.001 in batches of 128."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    fit(model, split.train, optimizer=optimizer, epochs=epochs, batch_size=128, seed=seed, progress=False)
    return model.eval()


def compressed(model: nn.Module, config: Any, samples: Any = None) -> nn.Module:
    """A copy of the model, compressed; the model stays as it is."""
    small = copy.deepcopy(model)
    compress_(small, config, samples)
    return small


def percent(model: nn.Module, part: Any) -> float:
    """The accuracy in percent."""
    return 100 * float(evaluate(model, part)["accuracy"])


def masked_loss(logits: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of `(batch, time, tokens)` where the mask is 1."""
    each = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return (each * mask.flatten()).sum() / mask.sum()


def draw(generator: torch.Generator, *tensors: Tensor, size: int) -> Batch:
    """A batch of rows drawn at random from tensors of equal length."""
    chosen = torch.randint(len(tensors[0]), (size,), generator=generator)
    return tuple(tensor[chosen] for tensor in tensors)


class Halving:
    """Halve the learning rate at step `first` and every `every` steps after it."""

    def __init__(self, optimizer: torch.optim.Optimizer, first: int, every: int) -> None:
        self.optimizer, self.first, self.every, self.count = optimizer, first, every, 0

    def step(self, loss: Tensor) -> None:
        self.count += 1
        if self.count >= self.first and (self.count - self.first) % self.every == 0:
            for group in self.optimizer.param_groups:
                group["lr"] /= 2
