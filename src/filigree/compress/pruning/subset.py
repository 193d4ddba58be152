"""Greedy column subset selection: an order of units in which each one restores the most of what is left."""

from __future__ import annotations

import torch
from torch import Tensor

AT_ONCE = 512  # rounds; of more units several are taken in a round


def subset_order(covariance: Tensor, outgoing: Tensor, count: int, block: int | None = None) -> Tensor:
    """The first `count` units, each the one that lowers the most `tr(G R)` once those before it are taken.

    R is the covariance S of the units' residuals after regression on those already taken, G the Gram matrix of their
    outgoing weights: unit u lowers the trace by `R_u^T G R_u / R_uu`. R is never made: it is `S - C C^T`, C a column
    for each unit taken, and the numerators are kept up to date by products of S and G with the new columns. `O(kept x
    units^2)`.

    Args:
        block: units taken in a round, the best ones of four times as many candidates; None: 1 up to 1,023 units.
    """
    s, g = covariance, outgoing
    units = len(s)
    block = max(1, units // AT_ONCE) if block is None else block
    left = s.diagonal().clone()  # R_uu
    numerators = ((g @ s) * s).sum(0)  # R_u^T G R_u
    least = 1e-9 * float(left.max())
    columns = s.new_empty(units, 0)
    order: list[int] = []
    while len(order) < count:
        gains = numerators / left.clamp(min=1e-300)
        gains[left <= least] = -1.0
        gains[order] = -1.0
        candidates = gains.topk(min(units, 4 * block if block > 1 else 1)).indices
        candidates = candidates[gains[candidates] >= 0]
        if not len(candidates):
            break
        taken = _best_of(s, g, columns, candidates, min(block, count - len(order)), least)
        order += taken.tolist()
        residual = s[:, taken] - columns @ columns[taken].T
        factor = torch.linalg.cholesky(residual[taken])
        new = torch.linalg.solve_triangular(factor, residual.T, upper=False).T
        fed = g @ new
        numerators -= 2 * (new * (s @ fed - columns @ (columns.T @ fed))).sum(1)
        numerators += ((new @ (new.T @ fed)) * new).sum(1)
        left -= new.square().sum(1)
        columns = torch.cat([columns, new], 1)
    rest = torch.ones(units, dtype=torch.bool)
    rest[order] = False
    return torch.cat([torch.tensor(order, dtype=torch.long), rest.nonzero().squeeze(1)])[:count]


def _best_of(s: Tensor, g: Tensor, columns: Tensor, candidates: Tensor, count: int, least: float) -> Tensor:
    """So many of the candidates, greedily: the same steps, with matrices of the candidates only."""
    if len(candidates) == 1:
        return candidates
    residual = s[:, candidates] - columns @ columns[candidates].T
    k, r = residual.T @ (g @ residual), residual[candidates]
    taken: list[int] = []
    while len(taken) < count:
        own = r.diagonal()
        gains = k.diagonal() / own.clamp(min=1e-300)
        gains[own <= max(least, 1e-6 * float(s.diagonal().mean())) if taken else own <= least] = -1.0
        gains[taken] = -1.0
        best = int(gains.argmax())
        if gains[best] < 0:
            break
        taken.append(best)
        row, fed, scale = r[best].clone(), k[best].clone(), float(own[best])
        r = r - torch.outer(row, row) / scale
        k = k - (torch.outer(fed, row) + torch.outer(row, fed)) / scale + torch.outer(row, row) * (fed[best] / scale**2)
    return candidates[torch.tensor(taken)]
