"""The kernels of `gpu.py`: a program a row, no atomics, the same bits every time. Importing this loads Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def spmm_kernel(
    values, indptr, indices, perm, x, y, bias, batch, x_stride, y_stride,
    HAS_PERM: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr, WIDE: tl.constexpr, SUM: tl.constexpr,
    K: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1) * B + tl.arange(0, B)
    start, end = tl.load(indptr + row), tl.load(indptr + row + 1)
    total = tl.zeros((K, B), dtype=SUM)  # the threads' own sums, added up once, after the loop
    for k in range(start, end, K):
        at = k + tl.arange(0, K)
        there = at < end
        column = tl.load(indices + at, mask=there, other=0)
        if WIDE:
            column = column.to(tl.int64)
        if HAS_PERM:
            at = tl.load(perm + at, mask=there, other=0)
        value = tl.load(values + at, mask=there, other=0.0).to(SUM)
        both = there[:, None] & (b < batch)[None, :]
        inputs = tl.load(x + (column * x_stride)[:, None] + b[None, :], mask=both, other=0.0)
        total += value[:, None] * inputs.to(SUM)
    result = tl.sum(total, axis=0)
    if HAS_BIAS:
        result += tl.load(bias + row).to(SUM)
    if RELU:
        result = tl.where(result < 0, 0.0, result)  # keeps NaN, as torch does
    tl.store(y + row * y_stride + b, result, mask=b < batch)


@triton.jit
def sddmm_kernel(
    indptr, indices, dy, x, dvalues, batch, dy_stride, x_stride,
    WIDE: tl.constexpr, SUM: tl.constexpr, K: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start, end = tl.load(indptr + row), tl.load(indptr + row + 1)
    for k in range(start, end, K):
        at = k + tl.arange(0, K)
        there = at < end
        column = tl.load(indices + at, mask=there, other=0)
        if WIDE:
            column = column.to(tl.int64)
        inputs_of = x + (column * x_stride)[:, None]
        total = tl.zeros((K, B), dtype=SUM)
        for first in range(0, batch, B):
            b = first + tl.arange(0, B)
            gradient = tl.load(dy + row * dy_stride + b, mask=b < batch, other=0.0).to(SUM)
            both = there[:, None] & (b < batch)[None, :]
            inputs = tl.load(inputs_of + b[None, :], mask=both, other=0.0)
            total += gradient[None, :] * inputs.to(SUM)
        tl.store(dvalues + at, tl.sum(total, axis=1), mask=there)
