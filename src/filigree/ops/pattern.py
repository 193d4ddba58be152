"""The pattern of a sparse matrix: the positions of its nonzeros."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy  # its parts load at their first use
import torch
from torch import Tensor


class Pattern(NamedTuple):
    """The positions of the nonzeros of a matrix `(rows, cols)`: compressed rows, and the index of the transpose.

    `indptr` `(rows + 1,)`, `indices` `(nnz,)` sorted in each row; `t_indptr` `(cols + 1,)`, `t_indices` `(nnz,)` the
    same of the transpose, whose k-th nonzero is number `t_perm[k]` of this matrix, and `t_place` the inverse of that
    permutation. All int32 or all int64.
    """

    indptr: Tensor
    indices: Tensor
    t_indptr: Tensor
    t_indices: Tensor
    t_perm: Tensor
    t_place: Tensor

    @property
    def rows(self) -> int:
        return self.indptr.numel() - 1

    @property
    def cols(self) -> int:
        return self.t_indptr.numel() - 1

    @property
    def nnz(self) -> int:
        return self.indices.numel()


def csr_pattern(indptr: np.ndarray, indices: np.ndarray, cols: int) -> Pattern:
    """A pattern from its compressed rows; the transpose by scipy's counting sort, O(nnz)."""
    order = np.arange(len(indices), dtype=indices.dtype)
    t = scipy.sparse.csr_array((order, indices, indptr), shape=(len(indptr) - 1, cols)).tocsc()
    t_place = np.empty_like(order)
    t_place[t.data] = order
    of_transpose = (part.astype(indices.dtype, copy=False) for part in (t.indptr, t.indices, t.data))
    return Pattern(*map(torch.from_numpy, (indptr, indices, *of_transpose, t_place)))
