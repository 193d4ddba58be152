"""Products with sparse matrices of small integers, and the gradient of their input.

The operator `torch.ops.filigree.integer_linear` runs the compiled kernel on CPU tensors of float32 and float64, and
plain torch elsewhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from filigree.ops import reference
from filigree.ops._load import kernels
from filigree.ops.addresses import address, matrix
from filigree.ops.sparse import FLOATS, define, feature_major, library, new_matrix
from filigree.ops.transforms import batched_gradients, transforming


class Integers(NamedTuple):
    """A matrix of small integers in compressed rows.

    `indptr` `(rows + 1,)` int32; `indices` `(entries,)` int16 or int32; `counts` `(entries,)` int8. A larger number
    is stored as several entries of the same column.
    """

    indptr: Tensor
    indices: Tensor
    counts: Tensor

    @classmethod
    def of(cls, indptr: Tensor, columns: Tensor, counts: Tensor, cols: int) -> Integers:
        """From int32 numbers of any size, columns distinct in each row."""
        columns = columns.to(torch.int16) if cols <= 2**15 else columns
        if counts.numel() and int(counts.abs().max()) > 127:
            parts = (counts.abs() + 126) // 127
            ends = torch.cat([indptr.new_zeros(1), parts.cumsum(0, dtype=torch.int32)])
            which = torch.repeat_interleave(parts.long())
            number = torch.arange(len(which)) - ends.long()[which]
            rest = counts.abs()[which] - 127 * number
            counts = (rest.clamp(max=127) * counts.sign()[which]).to(torch.int8)
            return cls(ends[indptr.long()], columns[which], counts)
        return cls(indptr, columns, counts.to(torch.int8))


def integer_linear(
    matrix: Integers, cols: int, x: Tensor, scale: Tensor, bias: Tensor | None = None, relu: bool = False
) -> Tensor:
    """`y = relu(scale * (x C^T) + bias)`, C a matrix of small integers; its gradient in x.

    Args:
        matrix: C `(rows, cols)`. x: `(batch, cols)`. scale, bias: `(rows,)`.

    Returns:
        `(batch, rows)`, a transposed view as of `filigree.ops.sparse.linear`. Equivalent to `nn.functional.linear` with
        the weight `scale[:, None] * C`.
    """
    if x.dim() != 2 or x.shape[1] != cols:
        raise ValueError(f"integer_linear: x must be (batch, {cols}). Got {tuple(x.shape)}.")
    rows = matrix.indptr.numel() - 1
    for name, given in (("scale", scale), ("bias", bias)):
        if given is not None and given.shape != (rows,):
            raise ValueError(f"integer_linear: {name} must be ({rows},). Got {tuple(given.shape)}.")
    bias = None if bias is None else bias.to(x.dtype)
    if transforming():
        return _reference(matrix, x, scale.to(x.dtype), bias, relu)
    return torch.ops.filigree.integer_linear(x, scale.to(x.dtype), bias, relu, *matrix)


def _forward(integers: Integers, x: Tensor, scale: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    if x.dtype not in FLOATS:
        return _reference(matrix, x, scale, bias, relu)
    (batch, cols), (indptr, indices, counts) = x.shape, integers
    rows = indptr.numel() - 1
    columns = feature_major(x.t())
    y = new_matrix(x, rows, batch)
    scale, bias = scale.contiguous(), None if bias is None else bias.contiguous()
    kernels.integer_spmm(
        x.dtype is torch.float64,
        (rows, indptr.data_ptr(), indices.data_ptr(), counts.data_ptr(), indices.dtype is torch.int16), cols,
        matrix(columns), matrix(y), batch, scale.data_ptr(), address(bias), relu,
    )  # fmt: skip
    return y.t().data  # no view, so that it may be changed in place


def _dense(matrix: Integers, scale: Tensor, cols: int) -> Tensor:
    return scale[:, None] * reference.dense(matrix.indptr, matrix.indices, matrix.counts.to(scale.dtype), cols)


def _reference(matrix: Integers, x: Tensor, scale: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    y = torch.nn.functional.linear(x, _dense(matrix, scale, x.shape[1]), bias)
    return y.relu() if relu else y


define(
    "integer_linear(Tensor x, Tensor scale, Tensor? bias, bool relu, {matrix}) -> Tensor",
    _forward,
    _reference,
    lambda matrix, x, scale, bias, relu: x.new_empty(matrix.indptr.shape[0] - 1, x.shape[0]).t(),
    matrix=Integers,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, bias, relu, *matrix = inputs
    ctx.save_for_backward(scale, output if relu else None, *matrix)
    ctx.cols, ctx.has_bias = x.shape[1], bias is not None


@batched_gradients
def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    scale, y, *matrix = ctx.saved_tensors
    dz = dy if y is None else torch.where(y <= 0, 0, dy)
    dx = dz @ _dense(Integers(*matrix), scale, ctx.cols) if ctx.needs_input_grad[0] else None
    return dx, None, dz.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None, None, None, None, None


torch.library.register_autograd("filigree::integer_linear", _backward, setup_context=_keep, lib=library)
