"""What the taps of a wide kernel add to a refit by units: conjugate gradients on rows, without columns x columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from filigree.compress.pruning.moments import MEMORY
from filigree.compress.pruning.samples import ROWS

STEPS = 60
CHECKED = 4  # steps after which the rows that nothing is fitted to are looked at


def rows_for(width: int) -> int:
    """How many rows of so many columns are kept: half of `MEMORY`."""
    return max(1, min(ROWS, MEMORY // 8 // width))


def refined(
    read: Sequence[Tensor], outputs: Sequence[Tensor], start: Tensor, damping: float, centre: bool
) -> tuple[Tensor, Tensor] | None:
    """`argmin |W x + b - y|^2 + damping v |W - start|^2` over W and b, from `start` on, v the mean variance of x.

    An eighth of the rows decides how many steps are taken, so that few rows are no harm.

    Args:
        read, outputs: rows x `(rows, columns)` and y `(rows, outputs)`. start: `(outputs, columns)`. centre: whether
            there is a b; without it is zero.

    Returns:
        W and b; None where no step makes the error on the eighth smaller.
    """
    x, y = torch.cat(list(read)), torch.cat(list(outputs))
    held = len(x) // 8
    if not held:
        return None
    mean_x = x[:-held].mean(0) * centre
    mean_y = y[:-held].mean(0) * centre
    x -= mean_x
    y = y - mean_y
    x, test, y, expected = x[:-held], x[-held:], y[:-held], y[-held:]
    ridge = damping * float(x.square().mean()) * len(x)
    w = start.T.to(x).clone()  # (columns, outputs)
    residual = x.T @ (y - x @ w)
    direction, size = residual.clone(), residual.square().sum(0)
    best, least, begun = w, float((test @ w - expected).square().sum()), False
    for step in range(1, STEPS + 1):
        moved = torch.addmm(direction, x.T, x @ direction, beta=ridge)
        length = size / (direction * moved).sum(0).clamp(min=1e-30)
        w = w + length * direction
        residual -= length * moved
        new = residual.square().sum(0)
        direction = torch.addcmul(residual, new / size.clamp(min=1e-30), direction)
        size = new
        if step % CHECKED == 0:
            error = float((test @ w - expected).square().sum())
            if not error < least:
                break
            best, least, begun = w, error, True
    return (best.T, mean_y - mean_x @ best) if begun else None
