"""Which weights of a matrix go, and what the others take over: the optimal brain surgeon (Hassibi and Stork 1993).

A matrix W reads inputs with the second moments H. Without some of its weights it should change least in what it
computes: `tr((V - W) H (V - W)^T)` is to be small, V zero where a weight went. Taking out weight q of a row costs
`w_q^2 / (2 P_qq)`, P the inverse of H, and changes the others by `-w_q P_q / P_qq`.

Shapes: weights `(groups, rows, columns)`, moments `(groups, columns, columns)`, all in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from filigree.compress.one_shot.patterns import Pattern

EXACT = 1e8  # rows x columns^3 up to which weights are taken out one by one
SOLVED = 3e10  # and up to which each row's equations are solved directly
NUMBERS = 2**23  # of a batch of matrices, at most
ROUNDS = 60  # of `alternating`, at most
BLOCK = 128  # columns whose weights are chosen together


def surgeon(weight: Tensor, moments: Tensor, keep: float, pattern: Pattern, by_row: bool = False) -> Tensor:
    """Which weights stay, as truth values: exactly, one by one, where that is affordable; else as `column_by_column`
    and `alternating` after it say.

    Args:
        by_row: whether each row keeps the share `keep` (of a pattern's rows each band of them); else the matrix does.
    """
    groups, rows, columns = weight.shape
    if pattern.columns == 1 and groups * rows * columns**3 <= EXACT and groups * rows * columns**2 <= NUMBERS:
        return one_by_one(weight, moments, keep, pattern, by_row)
    first = column_by_column(weight, moments, keep, pattern, by_row)
    again = alternating(weight, moments, keep, pattern, first, by_row)
    costs = [float(lost(refitted(weight, moments, mask) - weight, moments).sum()) for mask in (first, again)]
    return again if costs[1] <= costs[0] else first


def one_by_one(weight: Tensor, moments: Tensor, keep: float, pattern: Pattern, by_row: bool = False) -> Tensor:
    """The optimal brain surgeon itself, row by row: always the cheapest weight that is left, all others updated.

    Rows of a block go through it together. How many weights a row loses follows, unless the pattern says it or
    `by_row` the same for all, from what each loss costs in all rows: the cheapest go (Frantar and Alistarh 2022,
    algorithm 2).
    """
    groups, rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -rows % pattern.rows))
    w = padded.unflatten(1, (-1, pattern.rows)).flatten(0, 1).clone()  # (bands, rows of a band, columns)
    bands = torch.arange(len(w))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    inverse = inverse.repeat_interleave(len(w) // groups, 0)  # (bands, columns, columns)
    gone = torch.zeros(len(w), columns, dtype=torch.bool)
    left_in_group = torch.full((len(w), columns // pattern.m), pattern.m) if pattern.m else None
    steps = columns - columns // pattern.m * pattern.n if pattern.m else columns
    order, costs = [], []
    for _ in range(steps):
        own = inverse.diagonal(dim1=1, dim2=2)
        cost = w.square().sum(1) / own.clamp(min=1e-300)
        barred = gone
        if left_in_group is not None:
            barred = gone | (left_in_group <= pattern.n).repeat_interleave(pattern.m, 1)
        cost = cost.masked_fill(barred, torch.inf)
        least, at = cost.min(1)
        order.append(at)
        costs.append(least)
        column = inverse[bands, at] / own[bands, at, None]  # (bands, columns)
        w -= w[bands, :, at].unsqueeze(2) * column.unsqueeze(1)
        inverse -= inverse[bands, :, at].unsqueeze(2) * column.unsqueeze(1)
        gone[bands, at] = True
        w.masked_fill_(gone.unsqueeze(1), 0)
        if left_in_group is not None:
            left_in_group[bands, at // pattern.m] -= 1
    taken = torch.stack(order, 1)  # (bands, steps)
    if pattern.m:
        lost = torch.ones_like(taken, dtype=torch.bool)
    else:
        rising = torch.stack(costs, 1).cummax(1).values  # a row's losses come in their order
        if by_row:  # all rows as many, some one more
            each = int((1 - keep) * columns)
            rising[:, :each], rising[:, each + 1 :] = -1, torch.inf
        rising = rising.flatten()
        lost = torch.zeros_like(rising, dtype=torch.bool)
        count = min(rising.numel() - 1, round((1 - keep) * rising.numel()))
        lost[rising.argsort(stable=True)[:count]] = True
        lost = lost.view_as(taken)
    mask = torch.ones(len(w), columns, dtype=torch.bool).scatter_(1, taken, ~lost)
    return mask.view(groups, -1, 1, columns).expand(-1, -1, pattern.rows, -1).flatten(1, 2)[:, :rows]


def column_by_column(weight: Tensor, moments: Tensor, keep: float, pattern: Pattern, by_row: bool = False) -> Tensor:
    """As SparseGPT does (Frantar and Alistarh 2023): in each block of columns the cheapest go, and the columns behind
    it take their errors over. O(rows x columns^2) for all rows together.
    """
    w = weight.clone()
    upper = inverse_factor(moments)
    own = upper.diagonal(dim1=1, dim2=2)
    mask = torch.ones_like(w, dtype=torch.bool)
    columns = w.shape[2]
    step = pattern.m or pattern.columns
    block = -(-BLOCK // step) * step
    for first in range(0, columns, block):
        last = min(first + block, columns)
        errors = w.new_zeros(*w.shape[:2], last - first)
        for j in range(first, last):
            if (j - first) % (pattern.m or block) == 0:
                end = min(j + (pattern.m or block), last)
                costs = (w[:, :, j:end] / own[:, None, j:end]).square()
                mask[:, :, j:end] = pattern.largest(costs, keep, by_row)
            error = w[:, :, j].masked_fill(mask[:, :, j], 0) / own[:, None, j]
            w[:, :, j:last] -= error[:, :, None] * upper[:, None, j, j:last]
            errors[:, :, j - first] = error
        w[:, :, last:] -= errors @ upper[:, first:last, last:]
    return mask


def alternating(
    weight: Tensor, moments: Tensor, keep: float, pattern: Pattern, mask: Tensor, by_row: bool = False
) -> Tensor:
    """A better choice of the weights that stay, from a first one: the alternating direction method of multipliers.

    As ALPS does (Meng et al. 2024): in turn V near to W in what it computes, near to a Z with few weights; Z the
    largest weights of V; and U, what still parts them, with a pull that grows until the choice stays what it is.
    """
    size = moments.diagonal(dim1=1, dim2=2).sqrt()
    values, vectors = torch.linalg.eigh(moments / size.unsqueeze(1) / size.unsqueeze(2))
    goal = weight * size.unsqueeze(1)
    wanted = (goal @ vectors) * values.unsqueeze(1)
    z, u, pull = goal * mask, torch.zeros_like(goal), 0.1
    for step in range(ROUNDS):
        v = ((wanted + (pull * z - u) @ vectors) / (values + pull).unsqueeze(1)) @ vectors.transpose(1, 2)
        moved = v + u / pull
        chosen = pattern.largest(moved.square(), keep, by_row)
        changed = int((chosen != mask).sum())
        mask, z = chosen, moved * chosen
        u += pull * (v - z)
        if step % 3 == 2:
            pull *= 1.3 if changed > 0.1 * int(mask.sum()) else 1.15
        if not changed and step > 10:
            break
    return mask


def inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the moments."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)


def refitted(weight: Tensor, moments: Tensor, mask: Tensor) -> Tensor:
    """The V nearest to W in what it computes, with weights where the mask is true only: least squares row by row."""
    groups, rows, columns = weight.shape
    if groups * rows * columns**3 > SOLVED:
        return _conjugate_gradients(weight, moments, mask)
    right = (weight @ moments * mask).flatten(0, 1)
    out = torch.empty_like(right)
    at = torch.arange(groups).repeat_interleave(rows)
    batch = max(1, NUMBERS // columns**2)
    for first in range(0, len(out), batch):
        part = slice(first, first + batch)
        stays = mask.flatten(0, 1)[part].to(weight.dtype)
        system = moments[at[part]] * stays[:, :, None] * stays[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(1 - stays)
        out[part] = torch.cholesky_solve(right[part].unsqueeze(2), torch.linalg.cholesky(system)).squeeze(2)
    return (out * mask.flatten(0, 1)).view_as(weight)


def _conjugate_gradients(weight: Tensor, moments: Tensor, mask: Tensor, steps: int = 50) -> Tensor:
    """The same for wide matrices, all rows at a time; no step makes a row's error larger."""
    stays = mask.to(weight.dtype)
    solution = weight * stays
    residual = (weight - solution) @ moments * stays
    scale = 1 / moments.diagonal(dim1=1, dim2=2).unsqueeze(1)
    z = residual * scale
    direction, before = z.clone(), (residual * z).sum(2, keepdim=True)
    least = 1e-12 * before.clamp(min=1e-300)
    for _ in range(steps):
        ahead = direction @ moments * stays
        length = before / (direction * ahead).sum(2, keepdim=True).clamp(min=1e-300)
        solution += length * direction
        residual -= length * ahead
        z = residual * scale
        now = (residual * z).sum(2, keepdim=True)
        if bool((now <= least).all()):
            break
        direction = z + now / before.clamp(min=1e-300) * direction
        before = now
    return solution


def lost(change: Tensor, moments: Tensor) -> Tensor:
    """What a change of the weights costs each row: `(D H D^T)_rr`, `(groups, rows)`."""
    return ((change @ moments) * change).sum(2)
