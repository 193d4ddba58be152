"""Drawing entries of a matrix: distinct, uniform, in O(number drawn), without a dense array.

The flat index of an entry of a `(rows, cols)` matrix is `row * cols + col`, int64; sorted, they are in CSR order.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from filigree.ops.pattern import Pattern, csr_pattern


def distinct(population: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` distinct integers of `[0, population)`, uniform over all such sets, sorted, int64.

    A small share is drawn with repeats dropped until there are enough; of a large share those left out are drawn.
    Either way the work is O(count).
    """
    if not 0 <= count <= population:
        raise ValueError(f"distinct: count must be in [0, {population}]. Got {count}.")
    if 2 * count > population:
        if 4 * (population - count) < population:
            left_out = torch.ones(population, dtype=torch.bool)
            left_out[distinct(population, population - count, generator)] = False
            return left_out.nonzero().squeeze(1)
        return torch.randperm(population, generator=generator)[:count].sort().values
    drawn = torch.randint(max(population, 1), (count,), generator=generator).sort().values.unique_consecutive()
    rest = drawn[:0]  # in place of the repeats, few
    while missing := count - len(drawn) - len(rest):
        more = torch.randint(population, (missing,), generator=generator)
        place = torch.searchsorted(drawn, more).clamp_(max=len(drawn) - 1)
        rest = torch.cat([rest, more[drawn[place] != more]]).unique()
    return merge(drawn, rest)[0]


def empty_flat_indices(taken: Tensor, population: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` distinct integers of `[0, population)` that are not in `taken` (sorted), uniform, sorted.

    Before the r-th free integer lie as many taken ones as have at most r free ones before them, so ranks among the
    free integers are drawn and shifted: no rejection, at any density.
    """
    ranks = distinct(population - taken.numel(), count, generator)
    empty_before = taken - torch.arange(taken.numel())
    return ranks + torch.searchsorted(empty_before, ranks, right=True)


def positions(mask: Tensor) -> Tensor:
    """Where a mask is True, ascending; on the CPU, where numpy takes a tenth of the time of `nonzero`."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def merge(kept: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
    """Merge two sorted, disjoint sets of flat indices, and say where each comes from: its number in `kept`, or -1."""
    place = torch.searchsorted(kept, grown) + torch.arange(grown.numel())
    is_kept = torch.ones(kept.numel() + grown.numel(), dtype=torch.bool).index_fill_(0, place, False)
    source = (is_kept.cumsum(0) - 1).index_fill_(0, place, -1)
    return moved(kept, source, 0).index_copy_(0, place, grown), source


def moved(values: Tensor, source: Tensor, new: float) -> Tensor:
    """`values` in another order: at each position the one of the number that `source` has there, `new` at -1."""
    if not len(values):
        return values.new_full(source.shape, new)
    return torch.where(source < 0, new, values.index_select(0, source.clamp(min=0)))


def pattern_from_flat_indices(flat_indices: Tensor, rows: int, cols: int) -> Pattern:
    """The pattern of sorted flat indices, with its transpose; int32 while the matrix's sides and nonzeros fit."""
    dtype = np.int32 if max(rows, cols, flat_indices.numel()) < 2**31 else np.int64
    row, col = np.divmod(flat_indices.numpy(), cols) if cols else (flat_indices.numpy(), flat_indices.numpy())
    return csr_pattern(_indptr(row, rows, dtype), col.astype(dtype), cols)


def flat_indices_of(pattern: Pattern) -> Tensor:
    """The sorted flat indices of a pattern, `(nnz,)` int64."""
    row = torch.repeat_interleave(pattern.indptr.diff().long(), output_size=pattern.nnz)
    return row * pattern.cols + pattern.indices


def _indptr(row: np.ndarray, rows: int, dtype: type | np.dtype) -> np.ndarray:
    indptr = np.zeros(rows + 1, dtype=dtype)
    np.cumsum(np.bincount(row, minlength=rows), out=indptr[1:])
    return indptr


def check_csr(indptr: Tensor, indices: Tensor, rows: int, cols: int, caller: str) -> None:
    """Check an index from outside before the kernels see it: `ValueError` names what is wrong."""

    def refuse(expected: str) -> None:
        raise ValueError(f"{caller}: not the compressed rows of a ({rows}, {cols}) matrix: {expected}.")

    if {indptr.dtype, indices.dtype} not in ({torch.int32}, {torch.int64}):
        refuse(f"both must be int32 or both int64, got {indptr.dtype} and {indices.dtype}")
    if indptr.shape != (rows + 1,) or indices.dim() != 1:
        refuse(f"expected shapes ({rows + 1},) and (nnz,), got {tuple(indptr.shape)} and {tuple(indices.shape)}")
    starts, columns = indptr.cpu().long(), indices.cpu().long()
    if starts[0] != 0 or starts[-1] != columns.numel() or bool((starts.diff() < 0).any()):
        refuse(f"indptr must rise from 0 to nnz={columns.numel()}")
    if columns.numel() and not (int(columns.min()) >= 0 and int(columns.max()) < cols):
        refuse(f"indices must lie in [0, {cols})")
    ascending = columns.diff() > 0
    inner = starts[1:-1]
    inner = inner[(inner > 0) & (inner < columns.numel())] - 1  # where a new row may begin lower
    ascending[inner] = True
    if not bool(ascending.all()):
        refuse("indices must be sorted and distinct in each row")
