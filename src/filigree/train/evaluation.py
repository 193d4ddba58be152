"""Evaluation: mean loss and accuracy of a model on data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from filigree.modes import evaluating
from filigree.train.batches import Batches, explaining, make_batches
from filigree.train.labels import checked_loss, with_r2
from filigree.train.meter import Meter
from filigree.untrained import warn_if_untrained
from filigree.wrappers import check_module

Loss = Callable[[Any, Tensor], Tensor]


def evaluation_batch(data: Any) -> int:
    """How many samples are evaluated at a time: 1024 labels' worth, as outputs of long sequences are large."""
    y = data[1] if isinstance(data, tuple | list) and len(data) == 2 else getattr(data, "y", None)
    each = y[0].numel() if isinstance(y, Tensor) and y.dim() > 1 and len(y) and not y.is_floating_point() else 1
    return max(1, 1024 // max(1, each))


def evaluate(
    model: nn.Module, data: Any, *, loss: Loss | None = None, batch_size: int | None = None
) -> dict[str, float]:
    """Mean loss and accuracy of `model` on `data`: in evaluation mode, without gradients.

    Args:
        model: any torch module; batches are moved to where it is. Every module's mode is restored.
        data: a pair `(x, y)` of tensors, an object with `.x` and `.y`, a Dataset or a DataLoader; x may be a sparse
            matrix, as in `fit`.
        loss: `loss(output, y)`, a mean over the batch, of whatever the model returns; by default cross entropy, or the
            mean squared error where y is one number a sample, floats `(n, 1)`, of a tensor.
        batch_size: samples at a time (a DataLoader keeps its own); by default 1024, fewer of sequences with many
            labels each.

    Returns:
        `{"loss": ..., "accuracy": ...}`, the mean over samples, and accuracy in [0, 1], only for integer labels and
        where the output is a tensor with a number for each class. By the mean squared error as the default, of tensors,
        also "r2": 1 minus the loss over the variance of y.

    Raises:
        ValueError, TypeError: as for `fit`'s data: empty, of unequal lengths, not finite, of another kind, labels that
            have no output.
    """
    check_module(model, "evaluate")
    warn_if_untrained(model, "evaluate")
    size = evaluation_batch(data) if batch_size is None else batch_size
    batches = make_batches(data, "evaluate: data", size, device_of(model), dtype=dtype_of(model))
    means = evaluate_batches(model, batches, loss or checked_loss("evaluate", {"data": batches}))
    return means if loss else with_r2(means, batches)


def evaluate_batches(
    model: nn.Module, batches: Batches, loss: Loss, total: Callable[[Tensor], Tensor] = lambda sums: sums
) -> dict[str, float]:
    """`evaluate` on batches that are made already; `total` adds the sums of several processes."""
    meter = Meter()
    with torch.no_grad(), evaluating(model), explaining(batches):
        for x, y in batches:
            output = model(x)
            meter.add(loss(output, y), output, y)
    return meter.means(total)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """The type of the model's first parameter of floating-point numbers; None where it has none."""
    return next((parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), None)
