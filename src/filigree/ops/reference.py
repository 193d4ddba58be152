"""The sparse products in plain dense torch: the reference of the tests, and what devices without kernels run.

All matrices are feature-major: `x` is `(in_features, batch)`. These functions form the dense weight, so they cost
what a dense layer costs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from filigree.ops.pattern import Pattern


def dense(indptr: Tensor, indices: Tensor, values: Tensor, in_features: int) -> Tensor:
    """The dense matrix `(out_features, in_features)` of compressed rows and values; repeated positions add up."""
    out = values.new_zeros(indptr.numel() - 1, in_features)
    return out.index_put((rows(indptr, indices.numel()), indices.long()), values, accumulate=True)


def rows(indptr: Tensor, nnz: int) -> Tensor:
    """The row of each nonzero, `(nnz,)` int64."""
    counts = indptr.diff().long()
    return torch.repeat_interleave(counts, output_size=nnz)


def spmm(pattern: Pattern, values: Tensor, x: Tensor) -> Tensor:
    """`W @ x`: `(out_features, batch)`."""
    return _dense(pattern, values) @ x


def spmm_t(pattern: Pattern, values: Tensor, dy: Tensor) -> Tensor:
    """`W.T @ dy`: `(in_features, batch)`."""
    return _dense(pattern, values).T @ dy


def sddmm(pattern: Pattern, dy: Tensor, x: Tensor) -> Tensor:
    """`(dy @ x.T)` at the nonzeros: `(nnz,)`."""
    return (dy @ x.T)[rows(pattern.indptr, pattern.nnz), pattern.indices.long()]


def linear(pattern: Pattern, values: Tensor, bias: Tensor | None, x: Tensor, relu: bool) -> Tensor:
    """`relu(x @ W.T + bias)` on a batch-major `x` `(batch, in_features)`, computed in the values' type."""
    y = torch.nn.functional.linear(x.to(values.dtype), _dense(pattern, values), bias)
    return (y.relu() if relu else y).to(x.dtype)


def linear_backward(
    pattern: Pattern, values: Tensor, x: Tensor, y: Tensor | None, dy: Tensor, need_input: bool, need_bias: bool,
    spmm_t: Callable[..., Tensor] = spmm_t, sddmm: Callable[..., Tensor] = sddmm,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of values, bias and input of `linear`, by the two products that are given.

    Args:
        x: `(in_features, batch)`. y: the output `(batch, out_features)` where a ReLU made it, else None.
        dy: the gradient of the output.

    Returns:
        `(nnz,)`, `(out_features,)` and `(batch, in_features)`; the last two are empty if they are not needed.
    """
    dz = (dy if y is None else torch.where(y <= 0, 0, dy)).t().to(values.dtype).contiguous()
    dbias = dz.sum(1) if need_bias else values.new_empty(0)
    dx = spmm_t(pattern, values, dz).t().to(x.dtype) if need_input else dy.new_empty(0)
    return sddmm(pattern, dz, x.to(values.dtype)), dbias, dx


def _dense(pattern: Pattern, values: Tensor) -> Tensor:
    return dense(pattern.indptr, pattern.indices, values, pattern.cols)
