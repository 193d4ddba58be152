"""The loss where none is given; labels are compared with the model's outputs before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from filigree.outputs import by_class, default_loss, is_quantity


def checked_loss(caller: str, data: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy whose first call refuses labels that have no output; classes are second, or last in sequences. Of
    targets `(batch, 1)` of floats, the mean squared error.

    Args:
        caller: "fit" or "evaluate". data: the batches of each argument; those that hold their labels in a tensor `y`
            are checked as a whole, others when a label is met.

    Raises, when it is called:
        TypeError: the model returns something else than a tensor.
        ValueError: labels out of range, in one line.
    """
    pending = {name: batches.y for name, batches in data.items() if isinstance(getattr(batches, "y", None), Tensor)}

    def loss(output: Tensor, y: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{caller}: without loss= the model must return a tensor. Got a {type(output).__name__}. "
                "Give a loss(output, y) that reads it."
            )
        if pending:
            for name, labels in pending.items():
                _check_shape(f"{caller}: {name}", labels, output)
                _check(f"{caller}: {name}", labels, by_class(output, y)[0])
            pending.clear()
        try:
            return default_loss(output, y)
        except IndexError:
            _check(caller, *by_class(output, y)[::-1])
            raise

    return loss


def with_r2(means: dict[str, float], batches: Any) -> dict[str, float]:
    """Means of an epoch by the default loss; those of a quantity with its R2, `1 - loss / variance of the targets`."""
    y = getattr(batches, "y", None)
    if y is None or not is_quantity(y) or not (variance := float(y.double().var(correction=0))):
        return means
    return means | {"r2": 1 - means["loss"] / variance}


def _check_shape(who: str, labels: Tensor, output: Tensor) -> None:
    if is_quantity(labels) and output.shape[1:] != (1,):
        raise ValueError(
            f"{who}: y is one quantity a sample, so the model must return (batch, 1). Got {tuple(output.shape)}."
        )
    if labels.is_floating_point() and labels.dim() == 2 and not is_quantity(labels) and bool((labels < 0).any()):
        raise ValueError(
            f"{who}: y holds negative numbers, which are no shares of classes. To learn quantities, give a loss=, such "
            "as F.mse_loss."
        )
    if labels.is_floating_point() and labels.dim() == 1:
        raise ValueError(
            f"{who}: labels must be whole numbers: y.long(). To learn quantities, give y as {len(labels)} x 1 and the "
            f"model one output, or a loss=. Got {labels.dtype}."
        )
    if not labels.is_floating_point() and labels.dim() == output.dim() == 2 and labels.shape[1] in (1, output.shape[1]):
        better = "y.squeeze(1)" if labels.shape[1] == 1 else "y.argmax(1), or shares of classes as floats: y.float()"
        raise ValueError(f"{who}: labels must be one a sample, ({len(labels)},): {better}. Got {tuple(labels.shape)}.")


def _check(who: str, labels: Tensor, output: Tensor) -> None:
    if labels.is_floating_point() or not labels.numel() or output.dim() == 0:
        return  # shares of classes
    classes = output.shape[1 if output.dim() > 1 else 0]
    known = labels[labels != -100]  # what cross entropy leaves out
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < classes:
        raise ValueError(
            f"{who}: labels must lie in [0, {classes}), one for each output of the model. "
            f"Got {int(known.min())} to {int(known.max())}."
        )
