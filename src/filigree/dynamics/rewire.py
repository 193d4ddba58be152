"""One rewiring as plain functions on arrays: which connections go, which come. O(connections), no dense scratch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from filigree.topology.flat_indices import empty_flat_indices


def survivors(weights: Tensor, zeta: float) -> Tensor:
    """Which connections stay, `(nnz,)` bool (SET; Chouliaras 2021, Algorithm 1).

    Removed are the `round(zeta n)` smallest of the n positive weights, the `round(zeta n)` largest (nearest to zero) of
    the n negative ones, and every exact zero: connections regrown at zero on dead inputs would pile up else. Halves
    round to even, so a tiny share of a tiny layer may remove nothing. Of equal weights that of lower index goes first.
    """
    w = weights.to(torch.promote_types(weights.dtype, torch.float32)).numpy()
    keep = w != 0
    for sign in (w > 0, w < 0):
        of_sign = np.flatnonzero(sign)
        count = round(zeta * len(of_sign))
        if count:
            size = np.abs(w[of_sign])
            threshold = np.partition(size, count - 1)[count - 1]
            keep[of_sign[size < threshold]] = False
            ties = of_sign[size == threshold]
            keep[ties[: count - int((size < threshold).sum())]] = False
    return torch.from_numpy(keep)


def merge(kept: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
    """Merge two sorted, disjoint sets of flat indices, and say where each comes from: its number in `kept`, or -1."""
    total = kept.numel() + grown.numel()
    source = torch.full((total,), -1)
    is_grown = torch.zeros(total, dtype=torch.bool)
    is_grown[torch.searchsorted(kept, grown) + torch.arange(grown.numel())] = True
    flat_indices = torch.empty(total, dtype=torch.int64)
    flat_indices[is_grown] = grown
    flat_indices[~is_grown] = kept
    source[~is_grown] = torch.arange(kept.numel())
    return flat_indices, source


def random_growth(kept: Tensor, population: int, count: int, generator: torch.Generator) -> Tensor:
    """SET: draw flat indices that are empty after the removal (just-removed ones too), uniformly at random."""
    return empty_flat_indices(kept, population, count, generator)


def gradient_growth(kept: Tensor, x: Tensor, dy: Tensor, count: int, block: int = 4_000_000) -> Tensor:
    """RigL (Evci et al. 2020): find the empty flat indices where the loss falls fastest, by |dW| = |dY^T X|.

    The dense gradient is formed block of rows by block of rows (about `block` numbers at a time), and only the best
    `count` flat indices so far are held.

    Args:
        kept: sorted flat indices that stay connected.
        x: `(batch, in_features)`, the layer's input.
        dy: `(batch, out_features)`, the gradient at its pre-activation.
        count: how many are wanted; fewer empty ones than that is the caller's mistake.
    """
    in_features, out_features = x.shape[1], dy.shape[1]
    rows = max(1, block // in_features)
    blocks = ((start * in_features, dy[:, start : start + rows].t() @ x) for start in range(0, out_features, rows))
    return largest_growth(kept, blocks, count)


def largest_growth(kept: Tensor, gradients: Iterable[tuple[int, Tensor]], count: int) -> Tensor:
    """Find the `count` empty flat indices of the largest gradient, given in blocks `(first index, gradients)`."""
    best: Tensor | None = None
    best_indices = torch.empty(0, dtype=torch.int64)
    for first, gradient in gradients:
        size = gradient.abs().flatten()
        here = kept[torch.searchsorted(kept, first) : torch.searchsorted(kept, first + size.numel())] - first
        size[here.to(size.device)] = -1
        top = size.topk(min(count, size.numel()))
        best = top.values if best is None else torch.cat([best, top.values])
        best_indices = torch.cat([best_indices.to(size.device), top.indices + first])
        if best.numel() > count:
            best, order = best.topk(count)
            best_indices = best_indices[order]
    return best_indices.cpu().sort().values
