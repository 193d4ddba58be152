"""Samples that are sparse themselves, as counts of words or one-hot columns are: rows of a matrix in CSR form."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from filigree.ops.pattern import Pattern


def is_sparse_rows(x: Any) -> bool:
    """Whether x is a matrix in compressed sparse rows: a CSR tensor of torch."""
    return isinstance(x, Tensor) and x.layout is torch.sparse_csr


def is_scipy_sparse(x: Any) -> bool:
    """Whether x is a sparse matrix or array of scipy, in any format."""
    return type(x).__module__.startswith("scipy.sparse") and hasattr(x, "tocsr")


def rows_with(x: Any, entries: np.ndarray) -> np.ndarray:
    """Whether each row of a CSR matrix of scipy holds one of these of its stored numbers, `(nnz,)` truth values."""
    rows = np.zeros(x.shape[0], bool)
    rows[np.searchsorted(x.indptr, np.flatnonzero(entries), side="right") - 1] = True
    return rows


def refuse_sparse_rows(x: Any, who: str) -> None:
    """`TypeError` where x is a CSR tensor: a layer, by its name or kind, that has no arithmetic for it."""
    if is_sparse_rows(x):
        raise TypeError(
            f"{who}: x must be dense: x.to_dense(). Linear, SparseLinear and MaskedLinear read CSR. "
            "Got torch.sparse_csr."
        )


def sparse_rows(x: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A sparse matrix of scipy, left as it is, as a CSR tensor of torch.

    It shares the matrix's memory where that is writable, in CSR form, of sorted columns without duplicates, and of
    the type that is asked for.
    """
    rows = x.tocsr()
    if rows is x and not (x.has_canonical_format and all(p.flags.writeable for p in (x.data, x.indices, x.indptr))):
        rows = x.copy()
    rows.sum_duplicates()
    values = torch.from_numpy(rows.data)
    if dtype is not None:
        values = values.to(dtype)
    return _tensor(torch.from_numpy(rows.indptr), torch.from_numpy(rows.indices), values, rows.shape[1])


def taken(x: Tensor, rows: Tensor | slice) -> Tensor:
    """Those rows of a CSR tensor, in O(their nonzeros)."""
    ends, columns, values = x.crow_indices(), x.col_indices(), x.values()
    if isinstance(rows, slice):
        first, last, _ = rows.indices(x.shape[0])
        begin, end = int(ends[first]), int(ends[max(first, last)])
        return _tensor(ends[first : last + 1] - begin, columns[begin:end], values[begin:end], x.shape[1])
    counts = ends.diff().index_select(0, rows)
    new_ends = torch.cat([counts.new_zeros(1), counts.cumsum(0).to(counts.dtype)])
    positions = _expanded(ends.index_select(0, rows), counts)
    return _tensor(new_ends, columns.index_select(0, positions), values.index_select(0, positions), x.shape[1])


def rows_of(x: Tensor, rows: Any) -> Tensor:
    """`x[rows]` of a tensor, dense or CSR; rows are a slice or numbers."""
    return taken(x, rows) if is_sparse_rows(x) else x[rows]


def split_rows(x: Tensor, size: int) -> Sequence[Tensor]:
    """`x.split(size)` of a tensor, dense or CSR."""
    if not is_sparse_rows(x):
        return x.split(size)
    return [taken(x, slice(i, i + size)) for i in range(0, x.shape[0], size)]


def as_dense(x: Tensor) -> Tensor:
    """A CSR tensor as a dense one; others as they are."""
    return x.to_dense() if is_sparse_rows(x) else x


def times_columns(x: Tensor, factors: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A CSR tensor whose columns are multiplied by factors `(columns,)` or `(1,)`, in float64, rounded to `dtype`."""
    own = factors.double()
    own = own if len(own) == 1 else own.index_select(0, x.col_indices())
    return _tensor(x.crow_indices(), x.col_indices(), (x.values().double() * own).to(dtype), x.shape[1])


def linear(pattern: Pattern, values: Tensor, bias: Tensor | None, x: Tensor, relu: bool = False) -> Tensor:
    """The sparse layer `y = relu(x W^T + bias)` of sparse samples; x has no gradient.

    Forward and backward visit each connection of each feature that a sample has: O(nonzeros of x times the connections
    of a feature). The gradient of the values is exact: those of features that no sample has are 0.

    Args:
        pattern, values: of W, as in `filigree.ops.sparse.linear`. x: a CSR tensor `(batch, in_features)`.

    Returns:
        `(batch, out_features)`, a transposed view of a feature-major matrix.
    """
    if x.shape[1] != pattern.cols:
        raise ValueError(f"linear: x must be (batch, {pattern.cols}). Got {tuple(x.shape)}.")
    batch, columns, entries = x.shape[0], x.col_indices(), x.values().to(values.dtype)
    samples = torch.arange(batch).repeat_interleave(x.crow_indices().diff())
    counts = pattern.t_indptr.diff().index_select(0, columns)
    positions = _expanded(pattern.t_indptr.index_select(0, columns), counts)  # in the transpose of W
    slots = pattern.t_indices.index_select(0, positions).long() * batch + samples.repeat_interleave(counts)
    weights = values.index_select(0, pattern.t_perm.index_select(0, positions))
    products = weights * entries.repeat_interleave(counts)
    y = values.new_zeros(pattern.rows * batch).index_add(0, slots, products).view(pattern.rows, batch)
    y = y if bias is None else y + bias.unsqueeze(1)
    return (y.relu() if relu else y).t()


def _expanded(starts: Tensor, counts: Tensor) -> Tensor:
    """The numbers `start, start + 1, ...`, so many as the count, of each start in turn."""
    before = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum())) + (starts - before).repeat_interleave(counts)


def _tensor(ends: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    _quiet()
    return torch.sparse_csr_tensor(ends, columns, values, (len(ends) - 1, width), check_invariants=False)


@functools.cache
def _quiet() -> None:
    """Let torch say once, to nobody, that its CSR tensors are new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1))
