"""Matrices of which only a few entries a row, or a few columns, are kept, and their products with dense ones.

`top` picks the largest entries of each row (`Rows`), `columns` one set for all rows (`Columns`). Products with a dense
matrix run batch-major on the sparse kernels: a row of `Rows` times W is a sum of a few rows of W, vectorised along the
features. CPU tensors of float32 and float64 run the kernels; all else takes plain torch, in the same semantics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from filigree.ops._load import kernels
from filigree.ops.addresses import matrix
from filigree.ops.sparse import FLOATS, csr_times, in_memory, new_matrix, resolved

# Measured on 784 -> 512 and 1024 -> 1024: above this share of kept entries a dense product of the masked matrix wins,
DENSE = 0.3
# and from this many columns for each kept one, adding up single products beats whole rows of a masked matrix.
_SCATTER = 24


class Transpose(NamedTuple):
    """The index of the transpose of `Rows`; `perm` is the position in `values` of each of its entries.

    `sums` `(width,)` are the sums of the columns.
    """

    indptr: Tensor
    indices: Tensor
    perm: Tensor
    sums: Tensor


@dataclass(frozen=True)
class Rows:
    """A matrix `(rows, width)` with a few entries in each row: `values`, `indices` and `indptr` by rows, int32."""

    width: int
    values: Tensor
    indptr: Tensor
    indices: Tensor
    transpose: Any = None  # a Transpose, where `t_times` and `sums` are needed

    @property
    def rows(self) -> int:
        return self.indptr.numel() - 1

    def addresses(self) -> tuple[int, ...]:
        """A `Top` of the kernels."""
        index = (0, 0, 0) if self.transpose is None else [part.data_ptr() for part in self.transpose[:3]]
        return self.indptr.data_ptr(), self.indices.data_ptr(), self.values.data_ptr(), *index, 0

    def dense(self) -> Tensor:
        """The dense matrix, `(rows, width)`."""
        out = self.values.new_empty(self.rows, self.width)
        kernels.spread(
            out.dtype is torch.float64, self.rows, self.width, self.addresses(), out.data_ptr(),
        )  # fmt: skip
        return out


@dataclass(frozen=True)
class Columns:
    """A matrix `(rows, width)` of which only the columns `index` are kept: `values` `(rows, k)`."""

    width: int
    values: Tensor
    index: Tensor

    def dense(self) -> Tensor:
        out = self.values.new_zeros(self.values.shape[0], self.width)
        return out.index_copy_(1, self.index, self.values)


Kept = Tensor | Rows | Columns


def top(x: Tensor, k: int, transposed: bool = True) -> Kept:
    """Of each row of `x` the k entries of largest magnitude, of equal ones those of lower index; zeros are never kept.

    Args:
        x: `(rows, width)`.
        k: at least 1. At k >= width all is kept: `x` itself.
        transposed: with the index of the transpose and the sums of the columns, for `t_times`.

    Equivalent to a stable descending sort of `x.abs()` and zeros after the k-th.
    """
    if k >= x.shape[1]:
        return x
    if not native(x):
        return top_mask(x, k).to(x.dtype) * x
    return _rows(x, k, transposed)


def top_mask(x: Tensor, k: int) -> Tensor:
    """Where `top` keeps an entry, by a stable sort: the reference."""
    order = x.abs().sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, order, True) & (x != 0)


def nonzeros(x: Tensor, transposed: bool = True) -> Kept:
    """The nonzeros of a matrix as `Rows`, or the matrix itself where it is too full for that to pay."""
    if not native(x) or int(x.count_nonzero()) > DENSE * x.numel():
        return x
    return _rows(x, x.shape[1], transposed)


def native(x: Tensor) -> bool:
    return in_memory(x) and x.dtype in FLOATS and x.shape[1] < 2**31 and x.numel() < 2**31


def row_major(x: Tensor) -> Tensor:
    """`x` with contiguous rows: itself, or a copy."""
    x = resolved(x)
    return x if x.stride(1) == 1 else x.contiguous()


def _rows(x: Tensor, k: int, transposed: bool) -> Rows:
    x = row_major(x)
    rows, width = x.shape
    room, back = rows * k, width + 1 if transposed else 0
    # one block for all indices: an allocation costs more than it seems
    block = torch.empty(rows + 1 + room + (back + 2 * room if transposed else 0), dtype=torch.int32)
    parts = block.split([rows + 1, room, *([back, room, room] if transposed else [])])
    values, sums = x.new_empty(room), x.new_empty(width if transposed else 0)
    addresses = [part.data_ptr() for part in parts[2:]] or [0, 0, 0]
    nnz = kernels.top(
        x.dtype is torch.float64, rows, width, k, matrix(x),
        (parts[0].data_ptr(), parts[1].data_ptr(), values.data_ptr(), *addresses, sums.data_ptr()),
    )  # fmt: skip
    if not transposed:
        return Rows(width, values[:nnz].clone() if nnz < room else values, parts[0], parts[1][:nnz])
    transpose = Transpose(parts[2], parts[3][:nnz], parts[4][:nnz], sums)
    return Rows(width, values[:nnz], parts[0], parts[1][:nnz], transpose)


def times(s: Kept, w: Tensor) -> Tensor:
    """`s @ w`: `(rows, width)` times `(width, columns)`."""
    if isinstance(s, Columns):
        return s.values @ w.index_select(0, s.index)
    if isinstance(s, Tensor):
        return s @ w
    if _is_full(s):
        return s.dense() @ w
    return csr_times(s.indptr, s.indices, None, s.values, w)


def t_times(s: Kept, x: Kept) -> Tensor:
    """`s.T @ x`, dense: `(rows, n)` and `(rows, m)` to `(n, m)`."""
    if isinstance(x, Rows):
        if isinstance(s, Rows) and not _is_full(s) and is_thin(x):
            return _outer(s, x)
        x = x.dense()
    if isinstance(x, Columns):
        return _placed(t_times(s, x.values), 1, x.index, x.width)
    if isinstance(s, Columns):
        return _placed(s.values.t() @ x, 0, s.index, s.width)
    if isinstance(s, Tensor):
        return s.t() @ x
    if _is_full(s):
        return s.dense().t() @ x
    return csr_times(s.transpose.indptr, s.transpose.indices, s.transpose.perm, s.values, x)


def top_backward(
    delta: Tensor, x: Tensor, w: Tensor, k: int, unified: bool, need_input: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """The gradients of a layer's input, weight and bias by top-k, in one call of the kernels.

    Args:
        delta: `(batch, out)`. x: `(batch, in)`. w: `(out, in)`. All on the CPU, float32 or float64.
        k: below `out`. unified: one choice for the batch, by the sums of magnitudes over it.

    Equivalent to `times`, `t_times` and `sums` of `top(delta, k)`.
    """
    delta, x, w = map(row_major, (delta, x, w))
    dx = new_matrix(delta, len(delta), w.shape[1]) if need_input else None
    dw = new_matrix(delta, *w.shape) if need_weight else None
    db = delta.new_empty(len(w))
    kernels.top_backward(
        delta.dtype is torch.float64, unified, len(delta), len(w), w.shape[1], k, matrix(delta), matrix(x), matrix(w),
        matrix(dx), matrix(dw), db.data_ptr(),
    )  # fmt: skip
    return dx, dw, db


def sums(s: Kept) -> Tensor:
    """The sums of the columns, `(width,)`."""
    if isinstance(s, Columns):
        return s.values.new_zeros(s.width).index_copy_(0, s.index, s.values.sum(0))
    return s.sum(0) if isinstance(s, Tensor) else s.transpose.sums


def dense(s: Kept) -> Tensor:
    """The dense matrix."""
    return s if isinstance(s, Tensor) else s.dense()


def is_thin(x: Kept) -> bool:
    """Whether so little of a matrix is kept that single products are faster than whole rows."""
    return isinstance(x, Rows) and x.indices.numel() * _SCATTER < x.rows * x.width


def _is_full(s: Rows) -> bool:
    return s.indices.numel() > DENSE * s.rows * s.width


def _placed(part: Tensor, side: int, index: Tensor, width: int) -> Tensor:
    shape = list(part.shape)
    shape[side] = width
    return part.new_zeros(shape).index_copy_(side, index, part)


def _outer(s: Rows, x: Rows) -> Tensor:
    y = new_matrix(s.values, s.width, x.width)
    kernels.outer(y.dtype is torch.float64, s.width, s.addresses(), x.width, x.addresses(), matrix(y))
    return y
