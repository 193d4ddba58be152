"""One rewiring as plain functions on arrays: which connections go, which come. O(connections), no dense scratch.

Of a layer whose rows are divided over processes each has the arrays of its rows, and `part` makes the choice one of the
whole layer: all processes call the same functions then, and remove and grow what one process with all rows would.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from filigree.topology.shards import WHOLE, Whole


def survivors(weights: Tensor, zeta: float, part: Whole = WHOLE) -> Tensor:
    """Which connections stay, `(nnz,)` bool (SET; Chouliaras 2021, Algorithm 1).

    Removed are the `round(zeta n)` smallest of the n positive weights, the `round(zeta n)` largest (nearest to zero) of
    the n negative ones, and every exact zero: connections regrown at zero on dead inputs would pile up else. Halves
    round to even, so a tiny share of a tiny layer may remove nothing. Of equal weights that of lower index goes first.
    """
    w = weights.to(torch.promote_types(weights.dtype, torch.float32)).numpy()
    keep = w != 0
    for sign in (w > 0, w < 0):
        of_sign = np.flatnonzero(sign)
        count = round(zeta * part.total(len(of_sign)))
        keep[of_sign[part.smallest(np.abs(w[of_sign]), count)]] = False
    return torch.from_numpy(keep)


def soft_survivors(
    weights: Tensor, zeta: float, exponent: float, generator: torch.Generator, part: Whole = WHOLE
) -> Tensor:
    """Draw which connections stay, `(nnz,)` bool (CHTs; Zhang et al. 2025, eq. 2).

    Of the n that are not zero `round((1 - zeta) n)` are drawn without replacement, with probabilities proportional to
    `|w|^exponent`.
    """
    size = weights.abs().double()
    keep = size > 0
    stay = round((1 - zeta) * part.total(int(keep.sum())))
    # the largest of p / Exp(1) are a draw without replacement (Efraimidis and Spirakis 2006)
    chance = part.numbers(lambda n: torch.empty(n, dtype=size.dtype).exponential_(generator=generator), len(size))
    drawn = exponent * size.log() - chance.log()
    return torch.from_numpy(part.smallest(-drawn.numpy(), stay))


def largest(weights: Tensor, count: int, part: Whole = WHOLE) -> Tensor:
    """The `count` largest weights by magnitude, `(nnz,)` bool; of equal ones those of lower index."""
    if count >= part.total(len(weights)):
        return torch.ones(len(weights), dtype=torch.bool)
    return torch.from_numpy(part.smallest(-weights.float().abs().numpy(), count))


def random_growth(kept: Tensor, population: int, count: int, generator: torch.Generator, part: Whole = WHOLE) -> Tensor:
    """SET: draw flat indices that are empty after the removal (just-removed ones too), uniformly at random."""
    return part.empty(kept, population, count, generator)


def gradient_growth(
    kept: Tensor, x: Tensor, dy: Tensor, count: int, block: int = 4_000_000, generator: torch.Generator | None = None,
    part: Whole = WHOLE,
) -> Tensor:  # fmt: skip
    """RigL (Evci et al. 2020): find the empty flat indices where the loss falls fastest, by |dW| = |dY^T X|.

    The dense gradient is formed block of rows by block of rows (about `block` numbers at a time), and only the best
    `count` flat indices so far are held.

    Args:
        kept: sorted flat indices that stay connected.
        x: `(batch, in_features)`, the layer's input.
        dy: `(batch, out_features)`, the gradient at its pre-activation.
        count: how many are wanted; fewer empty ones than that is the caller's mistake.
        generator: draw them, as in `largest_growth`.
    """
    in_features, out_features = x.shape[1], dy.shape[1]
    rows = max(1, block // in_features)
    blocks = ((start * in_features, dy[:, start : start + rows].t() @ x) for start in range(0, out_features, rows))
    return largest_growth(kept, blocks, count, generator, part)


def scored_growth(
    kept: Tensor, blocks: Iterable[tuple[np.ndarray, np.ndarray]], population: int, count: int,
    generator: torch.Generator, soft: bool = False,
) -> Tensor:  # fmt: skip
    """Find the `count` candidates of the highest scores, given in blocks `(flat indices, scores)`.

    Of equal scores chance decides. Where there are fewer candidates, the rest is drawn from all other empty indices.

    Args:
        kept: sorted flat indices that stay connected; no candidates. population: how many indices there are.
        soft: draw without replacement, with probabilities proportional to the scores (CHTs; Zhang et al. 2025).
    """
    best, best_indices = np.empty((2, 0)), np.empty(0, dtype=np.int64)  # scores and a random number each
    for flat_indices, scores in blocks:
        chance = torch.empty(len(scores), dtype=torch.float64).exponential_(generator=generator).numpy()
        here = np.stack([scores / chance if soft else scores, chance])
        best, best_indices = np.concatenate([best, here], axis=1), np.concatenate([best_indices, flat_indices])
        if best.shape[1] > count:
            threshold = np.partition(best[0], -count)[-count]
            stays = best[0] > threshold
            ties = np.flatnonzero(best[0] == threshold)
            stays[ties[np.argsort(best[1, ties])[: count - int(stays.sum())]]] = True
            best, best_indices = best[:, stays], best_indices[stays]
    grown = torch.from_numpy(np.sort(best_indices))
    rest = count - len(grown)
    if not rest:
        return grown
    taken = torch.cat([kept, grown]).sort().values
    return torch.cat([grown, WHOLE.empty(taken, population, rest, generator)]).sort().values


def largest_growth(
    kept: Tensor, gradients: Iterable[tuple[int, Tensor]], count: int, generator: torch.Generator | None = None,
    part: Whole = WHOLE,
) -> Tensor:  # fmt: skip
    """Find the `count` empty flat indices of the largest gradient, given in blocks `(first index, gradients)`.

    With a `generator` they are drawn without replacement, with probabilities proportional to the gradients' sizes.
    """
    best: Tensor | None = None
    best_indices = torch.empty(0, dtype=torch.int64)
    generator = None if generator is None else part.own_generator(generator)
    for first, gradient in gradients:
        size = gradient.abs().flatten()
        if generator is not None:
            size = size / torch.empty(size.shape).exponential_(generator=generator).to(size)
        here = kept[torch.searchsorted(kept, first) : torch.searchsorted(kept, first + size.numel())] - first
        size[here.to(size.device)] = -1
        top = size.topk(min(count, size.numel()))
        best = top.values if best is None else torch.cat([best, top.values])
        best_indices = torch.cat([best_indices.to(size.device), top.indices + first])
        if best.numel() > count:
            best, order = best.topk(count)
            best_indices = best_indices[order]
    grown, order = best_indices.cpu().sort()
    if part.processes == 1 or best is None:
        return grown
    return grown[torch.from_numpy(part.smallest(-best.cpu().float()[order].numpy(), count))]
