"""The sparse products as Triton kernels, for CUDA tensors: a program a row, no atomics, the same bits every time.

Where Triton is not installed, `available` is False and `filigree.ops.reference` is used. Triton's interpreter
(`TRITON_INTERPRET=1`) runs the same code on CPU tensors: it is how these kernels are tested without a GPU.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from filigree.ops import reference
from filigree.ops.pattern import Pattern

try:
    import triton
    import triton.language as tl

    available = True
except ImportError:
    available = False

_K = 16  # nonzeros at a time
_BATCH = 64  # samples of a program

if available:

    @triton.jit
    def _spmm_kernel(
        values, indptr, indices, perm, x, y, bias, batch, x_stride, y_stride,
        HAS_PERM: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64)
        b = tl.program_id(1) * B + tl.arange(0, B)
        start, end = tl.load(indptr + row), tl.load(indptr + row + 1)
        total = tl.zeros((B,), dtype=y.dtype.element_ty)
        for k in range(start, end, K):
            at = k + tl.arange(0, K)
            there = at < end
            column = tl.load(indices + at, mask=there, other=0).to(tl.int64)
            if HAS_PERM:
                at = tl.load(perm + at, mask=there, other=0)
            value = tl.load(values + at, mask=there, other=0.0)
            both = there[:, None] & (b < batch)[None, :]
            inputs = tl.load(x + column[:, None] * x_stride + b[None, :], mask=both, other=0.0)
            total += tl.sum(value[:, None] * inputs, axis=0)
        if HAS_BIAS:
            total += tl.load(bias + row)
        if RELU:
            total = tl.where(total < 0, 0.0, total)  # keeps NaN, as torch does
        tl.store(y + row * y_stride + b, total, mask=b < batch)

    @triton.jit
    def _sddmm_kernel(indptr, indices, dy, x, dvalues, batch, dy_stride, x_stride, K: tl.constexpr, B: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        start, end = tl.load(indptr + row), tl.load(indptr + row + 1)
        for k in range(start, end, K):
            at = k + tl.arange(0, K)
            there = at < end
            column = tl.load(indices + at, mask=there, other=0).to(tl.int64)
            total = tl.zeros((K,), dtype=dvalues.dtype.element_ty)
            for first in range(0, batch, B):
                b = first + tl.arange(0, B)
                gradient = tl.load(dy + row * dy_stride + b, mask=b < batch, other=0.0)
                both = there[:, None] & (b < batch)[None, :]
                inputs = tl.load(x + column[:, None] * x_stride + b[None, :], mask=both, other=0.0)
                total += tl.sum(gradient[None, :] * inputs, axis=1)
            tl.store(dvalues + at, total, mask=there)


def spmm(pattern: Pattern, values: Tensor, x: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """`relu(W x + bias)` on a feature-major `x` `(in_features, batch)`."""
    return _csr_times(pattern.indptr, pattern.indices, None, values, x, bias, relu)


def spmm_t(pattern: Pattern, values: Tensor, dy: Tensor) -> Tensor:
    """`W^T dy` on a feature-major `dy` `(out_features, batch)`."""
    return _csr_times(pattern.t_indptr, pattern.t_indices, pattern.t_perm, values, dy, None, False)


def _csr_times(
    indptr: Tensor, indices: Tensor, perm: Tensor | None, values: Tensor, x: Tensor, bias: Tensor | None, relu: bool
) -> Tensor:
    """As `filigree.ops.sparse.csr_times`."""
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, batch = indptr.numel() - 1, x.shape[1]
    y = x.new_empty(rows, batch)
    if y.numel():
        grid: Any = (rows, triton.cdiv(batch, _BATCH))
        _spmm_kernel[grid](
            values, indptr, indices, indices if perm is None else perm, x, y, values if bias is None else bias, batch,
            x.stride(0), y.stride(0), HAS_PERM=perm is not None, HAS_BIAS=bias is not None, RELU=relu, K=_K, B=_BATCH,
        )  # fmt: skip
    return y


def sddmm(pattern: Pattern, dy: Tensor, x: Tensor) -> Tensor:
    """`(dy x^T)` at the nonzeros, of feature-major matrices."""
    dy, x = (t if t.stride(1) == 1 else t.contiguous() for t in (dy, x))
    out = dy.new_zeros(pattern.nnz)
    if out.numel() and dy.shape[1]:
        _sddmm_kernel[(pattern.rows,)](
            pattern.indptr, pattern.indices, dy, x, out, dy.shape[1], dy.stride(0), x.stride(0), K=_K, B=_BATCH
        )
    return out


def linear(pattern: Pattern, values: Tensor, bias: Tensor | None, x: Tensor, relu: bool) -> Tensor:
    """`relu(x W^T + bias)` on a batch-major `x` `(batch, in_features)`."""
    return spmm(pattern, values, x.t(), bias, relu).t().data  # no view, as on the CPU


linear_backward = functools.partial(reference.linear_backward, spmm_t=spmm_t, sddmm=sddmm)
