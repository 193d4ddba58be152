"""Integers from weights by importance sampling from the distribution of their magnitudes (Keller et al.)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Sampling = Literal["jittered", "stratified", "independent"]


def sample(
    weight: Tensor, samples: float, per: Literal["layer", "row"], how: Sampling, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Counts C and a scale with `scale * C` an unbiased estimate of the weight.

    With p = |w| / sum |w| over the layer or a row and N samples, weight k is hit by the sample points that lie in
    [N P_{k-1}, N P_k), P the cumulative sum of p; `scale = sum |w| / N`, and the sign is restored.

    Args:
        weight: `(rows, cols)`. samples: a weight, N = round(samples * weights), at least 1.
        per: what N, the density and the scale belong to.
        how: the points: "jittered" `i + xi`, one xi uniform in [0, 1) for all: weight k is hit floor(N p_k) or
            ceil(N p_k) times; "stratified": an xi for each i; "independent": uniform in [0, N).

    Returns:
        C `(rows, cols)` int32, and the scale `(1,)` or `(rows,)`. O(weights + samples); "jittered" needs no search.
    """
    groups = weight.detach().double().abs()
    groups = groups.reshape(1, -1) if per == "layer" else groups
    rows, cols = groups.shape
    each = max(1, round(samples * cols))
    total = groups.sum(1)
    at = groups.cumsum(1) * (each / total.clamp(min=torch.finfo(torch.float64).tiny))[:, None]
    at[:, -1:] = torch.where(total > 0, each, 0)[:, None]  # exactly N, whatever rounding did
    if how == "jittered":
        xi = torch.rand(rows, 1, generator=generator, dtype=torch.float64)
        hits = (at - xi).ceil_()
        counts = torch.diff(hits.clamp_(min=0), dim=1, prepend=hits.new_zeros(rows, 1))
    else:
        xi = torch.rand(rows, each, generator=generator, dtype=torch.float64)
        points = xi * each if how == "independent" else xi + torch.arange(each)
        hit = torch.searchsorted(at, points.clamp_(max=torch.nextafter(xi.new_tensor(each), xi.new_zeros(())).item()),
                                 right=True)  # fmt: skip
        counts = torch.zeros(rows, cols + 1, dtype=torch.float64).scatter_add_(1, hit, torch.ones_like(xi))[:, :cols]
        counts[total == 0] = 0
    signed = counts.to(torch.int32).reshape(weight.shape) * weight.detach().sign().to(torch.int32)
    return signed, (total / each).to(weight.dtype)
