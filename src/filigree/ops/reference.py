"""The sparse products again in plain dense torch: the truth for tests, and the path of devices without kernels.

All matrices are feature-major: `x` is `(in_features, batch)`. These functions form the dense weight, so they cost
what a dense layer costs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dense(indptr: Tensor, indices: Tensor, values: Tensor, in_features: int) -> Tensor:
    """The dense matrix `(out_features, in_features)` of a pattern in compressed rows and its values; repeats add up."""
    out = values.new_zeros(indptr.numel() - 1, in_features)
    return out.index_put((rows(indptr, indices.numel()), indices.long()), values, accumulate=True)


def rows(indptr: Tensor, nnz: int) -> Tensor:
    """The row of each nonzero, `(nnz,)` int64."""
    counts = indptr.diff().long()
    return torch.repeat_interleave(counts, output_size=nnz)


def spmm(indptr: Tensor, indices: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """`W @ x`: `(out_features, batch)`."""
    return dense(indptr, indices, values, x.shape[0]) @ x


def spmm_t(indptr: Tensor, indices: Tensor, values: Tensor, dy: Tensor, in_features: int) -> Tensor:
    """`W.T @ dy`: `(in_features, batch)`."""
    return dense(indptr, indices, values, in_features).T @ dy


def sddmm(indptr: Tensor, indices: Tensor, dy: Tensor, x: Tensor) -> Tensor:
    """`(dy @ x.T)` at the nonzeros: `(nnz,)`."""
    return (dy @ x.T)[rows(indptr, indices.numel()), indices.long()]


def linear(indptr: Tensor, indices: Tensor, values: Tensor, bias: Tensor | None, x: Tensor, relu: bool) -> Tensor:
    """`relu(x @ W.T + bias)` on a batch-major `x` `(batch, in_features)`."""
    y = torch.nn.functional.linear(x, dense(indptr, indices, values, x.shape[-1]), bias)
    return y.relu() if relu else y
