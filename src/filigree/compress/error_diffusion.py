"""Integers by error diffusion: sampling calibrated by what a layer reads.

Jittered sampling walks along the weights' cumulative sum and hands the rounding error of each weight on to the next.
Here the error goes to all weights of the row not yet sampled, in the shares that keep the row's outputs as near as
possible to what they were on the data: the optimal brain surgeon's shares, as GPTQ (Frantar et al. 2023) takes them for
rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64  # columns whose errors are diffused at once
PROBE = 256  # rows that the scale is searched on
THRESHOLD = 0.6  # of a step: a magnitude below it is not sampled; above n steps and this, n + 1 times


def diffuse_errors(
    weight: Tensor, own: Tensor, cross: Tensor, samples: float, per_row: bool, damping: float,
    generator: torch.Generator, mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Counts and a scale with `scale * C` near to `weight` in what they do to the data.

    Args:
        weight: W `(rows, cols)`. own: covariance `(cols, cols)` of the quantised network's inputs x'. cross:
            `E[x' x^T]`, x the original network's. samples: a weight; at most `round(samples * weights)` are drawn.
        per_row: a scale for each row, by its sum of magnitudes; else one. damping: share of the mean variance added to
            every variance. mask: where there may be samples at all.

    First `W' = argmin |W' x' - W x|^2 + damping |W' - W|^2`; then column by column, in random order, each weight of W'
    becomes `sign * floor(|w| / scale + 0.4)` steps, and its error e changes the columns j behind it by
    `-e U_ij / U_ii`, U the upper Cholesky factor of the inverse of the covariance. The scale is the least that stays
    within the samples. O(cols^3 + rows cols^2).

    Returns:
        C `(rows, cols)` int32, and the scale `(1,)` or `(rows,)`.
    """
    w, own, cross = weight.detach().double(), own.double(), cross.double()
    rows, cols = w.shape
    eye = damping * own.diagonal().mean().clamp(min=1e-12) * torch.eye(cols, dtype=torch.float64)
    damped = own + eye
    order = torch.randperm(cols, generator=generator)
    factor = torch.linalg.cholesky(damped[order][:, order])
    start = torch.cholesky_solve(((cross + eye) @ w.T)[order], factor).T.contiguous()
    upper = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    allowed = None if mask is None else mask[:, order]
    budget = round(samples * rows * cols)
    mean = start.abs().mean(1) if per_row else start.abs().mean().expand(rows)
    base = (mean / samples).clamp(min=torch.finfo(torch.float32).tiny)  # what plain sampling would take

    probe = torch.randperm(rows, generator=generator)[:PROBE].sort().values
    low, high = 0.02, 8.0  # of base: more samples, fewer
    for _ in range(14):
        middle = (low * high) ** 0.5
        drawn = _walk(start[probe], upper, base[probe] * middle, None if allowed is None else allowed[probe])
        if float(drawn.abs().sum()) * rows / len(probe) > budget:
            low = middle
        else:
            high = middle
    steps_taken = _walk(start, upper, base * high, allowed)
    while float(steps_taken.abs().sum()) > budget * (1 + 1e-9) and high < 1e6:  # the probe was not quite like the rest
        high *= 1.01
        steps_taken = _walk(start, upper, base * high, allowed)
    counts = torch.zeros(rows, cols, dtype=torch.int32)
    counts[:, order] = steps_taken.to(torch.int32)
    scale = base * high
    return counts, (scale if per_row else scale[:1]).to(weight.dtype)


def _walk(start: Tensor, upper: Tensor, step: Tensor, allowed: Tensor | None) -> Tensor:
    """The steps of each weight, errors diffused from column to column."""
    w = start.T.contiguous()  # a column's numbers lie side by side
    allowed = None if allowed is None else allowed.T.to(w)
    out, cols, diagonal = torch.empty_like(w), len(w), upper.diagonal().tolist()
    for first in range(0, cols, BLOCK):
        last = min(first + BLOCK, cols)
        errors = w.new_empty(last - first, w.shape[1])
        for j, error in zip(range(first, last), errors, strict=True):
            column = w[j]
            steps = (column.abs() / step).add_(1 - THRESHOLD).floor_().copysign_(column)
            if allowed is not None:
                steps *= allowed[j]
            out[j] = steps
            error.copy_(column).addcmul_(steps, step, value=-1).div_(diagonal[j])
            w[j + 1 : last].addr_(upper[j, j + 1 : last], error, alpha=-1)
        w[last:].addmm_(upper[first:last, last:].T, errors, alpha=-1)
    return out.T
