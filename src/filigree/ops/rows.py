"""Sparse layers of which only some rows are computed: outputs that are wanted, or that have a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from filigree.ops._load import kernels
from filigree.ops.addresses import address, compressed_rows, index, matrix
from filigree.ops.memory import contiguous, feature_major, floats_on_cpu, new_matrix, resolved
from filigree.ops.once_differentiable import once_differentiable
from filigree.ops.pattern import Pattern
from filigree.ops.sparse import check_layer, linear, sddmm, spmm_t
from filigree.ops.transforms import transforming


def rows_backward(
    pattern: Pattern, chosen: Tensor, values: Tensor, dy: Tensor, x: Tensor, need_input: bool = True
) -> tuple[Tensor | None, Tensor]:
    """`(W[chosen]^T dy, dvalues)`: the backward pass of a layer of which only a few outputs have a gradient.

    Args:
        pattern: of W `(rows, cols)`. chosen: `(k,)` int64, ascending. values: `(nnz,)`.
        dy: `(k, batch)`, contiguous. x: `(cols, batch)`, feature-major.

    Returns:
        `(cols, batch)`, None unless `need_input`, and `(nnz,)`, zero in the other rows.
        Equivalent to `spmm_t` and `sddmm` with dy scattered.
    """
    if not floats_on_cpu(x):
        full = dy.new_zeros(pattern.rows, dy.shape[1]).index_copy_(0, chosen, dy)
        return spmm_t(pattern, values, full) if need_input else None, sddmm(pattern, full, x)
    return _rows_backward(pattern, chosen, values, dy, x, None, False, need_input)[:2]


def _rows_backward(
    pattern: Pattern,
    chosen: Tensor,
    values: Tensor,
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    whole: bool,
    need_input: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Gradients of input, values and, where dy holds all rows (`whole`), bias; dy is masked by y where y is given."""
    x, values, dy, batch = feature_major(x), contiguous(values), resolved(dy), x.shape[1]
    dx, dvalues = new_matrix(x, pattern.cols, batch) if need_input else None, torch.empty_like(values)
    dbias = x.new_zeros(pattern.rows) if whole else None
    kernels.rows_backward(
        x.dtype is torch.float64, index(pattern), (chosen.data_ptr(), len(chosen)), values.data_ptr(),
        matrix(dy), whole, matrix(y), matrix(x), matrix(dx), dvalues.data_ptr(), address(dbias), batch,
    )  # fmt: skip
    return dx, dvalues, dbias


class _RowsLinear(torch.autograd.Function):
    """A sparse layer of which only some outputs are wanted: the others are zero, and cost nothing but that."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, bias: Tensor | None, x: Tensor, pattern: Pattern, rows: Tensor, relu: bool
    ) -> Tensor:
        columns, values = feature_major(x.t()), contiguous(values)
        y = x.new_zeros(pattern.rows, x.shape[0])
        biases = None if bias is None else contiguous(bias)
        kernels.rows_spmm(
            x.dtype is torch.float64, compressed_rows(pattern.indptr, pattern.indices), (rows.data_ptr(), len(rows)),
            values.data_ptr(), matrix(columns), matrix(y), x.shape[0], address(biases), relu,
        )  # fmt: skip
        out = y.t().data  # no view, so that it may be changed in place
        ctx.save_for_backward(values, columns, rows, out if relu else None)
        ctx.pattern = pattern
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        values, columns, rows, y = ctx.saved_tensors
        _, need_bias, need_input, *_ = ctx.needs_input_grad
        dx, dvalues, dbias = _rows_backward(
            ctx.pattern, rows, values, feature_major(dy.t()), columns, None if y is None else y.t(), True, need_input
        )
        return dvalues, dbias if need_bias else None, None if dx is None else dx.t(), None, None, None


def rows_linear(
    pattern: Pattern, rows: Tensor, values: Tensor, bias: Tensor | None, x: Tensor, relu: bool = False
) -> Tensor:
    """`linear` with only these outputs, `rows` `(k,)` int64 ascending, computed; the others are zero."""
    if x.dim() != 2 or x.shape[1] != pattern.cols:
        raise ValueError(f"rows_linear: x must be (batch, {pattern.cols}). Got {tuple(x.shape)}.")
    check_layer("rows_linear", values, bias, x, pattern.nnz, pattern.rows)
    if rows.dtype is not torch.int64 or rows.dim() != 1 or len(rows) > pattern.rows:
        raise ValueError(f"rows_linear: rows must be int64 numbers of rows. Got {tuple(rows.shape)} of {rows.dtype}.")
    rows = rows.contiguous()
    if floats_on_cpu(x) and not transforming():
        return _RowsLinear.apply(values, bias, x, pattern, rows, relu)
    kept = torch.zeros(pattern.rows, dtype=x.dtype, device=x.device).index_fill_(0, rows, 1)
    return linear(pattern, values, bias, x, relu) * kept
