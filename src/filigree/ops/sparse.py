"""Sparse products on feature-major matrices, with their gradients.

`spmm`, `spmm_t` and `sddmm` are closed under differentiation: the gradients of each are the other two. `linear` is
the layer: bias and ReLU fused in, one pass over the output's gradient for both products of its backward.

All are operators of the library `filigree` (`torch.ops.filigree.*`), so that `torch.compile`, fake tensors and
`torch.no_grad` treat them as torch's own. CPU tensors run the compiled kernels; other devices run
`filigree.ops.reference`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts load at their first use
import torch
from torch import Tensor

from filigree.ops import gpu, reference
from filigree.ops._load import kernels

FLOATS = (torch.float32, torch.float64)
_LARGE = 4 << 20  # bytes
_modes = torch._C._len_torch_dispatch_stack


class Pattern(NamedTuple):
    """Where the nonzeros of a matrix `(rows, cols)` are: compressed rows, and the index of the transpose.

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
    place = np.empty_like(order)
    place[t.data] = order
    of_transpose = (part.astype(indices.dtype, copy=False) for part in (t.indptr, t.indices, t.data))
    return Pattern(*map(torch.from_numpy, (indptr, indices, *of_transpose, place)))


def spmm(pattern: Pattern, values: Tensor, x: Tensor) -> Tensor:
    """Sparse times dense, `Y = W X`.

    Args:
        pattern: of W, `(rows, cols)`.
        values: `(nnz,)`, float32 or float64, in the pattern's order.
        x: `(cols, batch)`, feature-major: read fastest where a feature's row is contiguous.

    Returns:
        `(rows, batch)`, contiguous. Equivalent to `reference.dense(...) @ x`, in O(nnz x batch).
    """
    _check("spmm", values, x, pattern.cols)
    _check_values("spmm", pattern, values)
    return torch.ops.filigree.spmm(values, x, *pattern)


def spmm_t(pattern: Pattern, values: Tensor, dy: Tensor) -> Tensor:
    """Transposed sparse times dense, `W^T dY`: `(rows, batch)` to `(cols, batch)`."""
    _check("spmm_t", values, dy, pattern.rows)
    _check_values("spmm_t", pattern, values)
    return torch.ops.filigree.spmm_t(values, dy, *pattern)


def sddmm(pattern: Pattern, dy: Tensor, x: Tensor) -> Tensor:
    """Sampled dense-dense product: `(dY X^T)` at the pattern's nonzeros only.

    Args:
        pattern: `(rows, cols)`.
        dy: `(rows, batch)`.
        x: `(cols, batch)`.

    Returns:
        `(nnz,)`, in O(nnz x batch), no dense scratch.
    """
    _check("sddmm", dy, dy, pattern.rows)
    _check("sddmm", dy, x, pattern.cols)
    if dy.shape[1] != x.shape[1]:
        raise ValueError(f"sddmm: dy and x must have the same batch. Got {dy.shape[1]} and {x.shape[1]}.")
    return torch.ops.filigree.sddmm(dy, x, *pattern)


def linear(pattern: Pattern, values: Tensor, bias: Tensor | None, x: Tensor, relu: bool = False) -> Tensor:
    """The sparse layer `y = relu(x W^T + bias)` on batch-major tensors.

    Args:
        pattern: of W, `(out_features, in_features)`.
        values: `(nnz,)`; float32 or float64, or another float type that is computed in float32.
        bias: `(out_features,)` or None.
        x: `(batch, in_features)`; a transposed view of a feature-major matrix is used as it is, others are copied
            into that order.
        relu: apply ReLU.

    Returns:
        `(batch, out_features)`, a transposed view (strides `(1, batch)`), so that a stack of layers never transposes.
    """
    if x.dim() != 2 or x.shape[1] != pattern.cols:
        raise ValueError(f"linear: x must be (batch, {pattern.cols}). Got {tuple(x.shape)}.")
    check_layer("linear", values, bias, x, pattern.nnz, pattern.rows)
    if x.dtype not in FLOATS:  # half precision is computed in float32
        wide = linear(pattern, values.float(), None if bias is None else bias.float(), x.float(), relu)
        return wide.to(x.dtype)
    if in_memory(x):
        if torch.is_grad_enabled():
            return _Linear.apply(values, bias, x, pattern, relu)
        return _linear_forward(values, bias, x, relu, *pattern)
    return torch.ops.filigree.linear_forward(values, bias, x, relu, *pattern)


def in_memory(x: Tensor) -> bool:
    """Whether a kernel may be called on x as it is: a plain tensor on the CPU, and nobody traces, fakes or counts."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.is_cpu
    return plain and not torch.compiler.is_compiling() and not _modes()  # modes: fake tensors, the FLOP counter, ...


def check_layer(name: str, values: Tensor, bias: Tensor | None, x: Tensor, nnz: int, rows: int) -> None:
    """`ValueError` unless values and bias are of x's type, one a connection and one a row: kernels read by address."""
    dtype = x.dtype
    if values.device != x.device:
        raise ValueError(f"{name}: values and x must be on one device. Got {values.device} and {x.device}.")
    if values.dtype is not dtype or values.shape != (nnz,):
        got = f"{tuple(values.shape)} of {values.dtype}"
        raise ValueError(f"{name}: values must be ({nnz},) of x's type {dtype}. Got {got}.")
    if bias is not None and (bias.dtype is not dtype or bias.shape != (rows,)):
        got = f"{tuple(bias.shape)} of {bias.dtype}"
        raise ValueError(f"{name}: bias must be ({rows},) of x's type {dtype}. Got {got}.")


def check_native(*tensors: Tensor) -> None:
    """`TypeError` unless kernels read these: numbers of one type, float32 or float64, on the CPU."""
    first = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype is not first or first not in FLOATS or not tensor.is_cpu:
            kinds = ", ".join(f"{t.dtype} on {t.device}" for t in tensors)
            raise TypeError(
                f"filigree's kernels: float32 or float64 throughout, on the CPU, was expected. Got {kinds}."
            )


def _check(name: str, values: Tensor, x: Tensor, features: int) -> None:
    if x.dim() != 2 or x.shape[0] != features:
        raise ValueError(f"{name}: expected a feature-major matrix ({features}, batch). Got {tuple(x.shape)}.")
    if values.dtype not in FLOATS or x.dtype != values.dtype:
        raise TypeError(f"{name}: expected float32 or float64 throughout. Got {values.dtype} and {x.dtype}.")


def _check_values(name: str, pattern: Pattern, values: Tensor) -> None:
    if values.shape != pattern.indices.shape:
        raise ValueError(f"{name}: values must be ({pattern.nnz},), one a connection. Got {tuple(values.shape)}.")


# -- the compiled path ----------------------------------------------------------------------------------------------


def resolved(x: Tensor) -> Tensor:
    """`x` with its numbers in memory: complex arithmetic makes views that are negated when they are read."""
    return x.resolve_neg() if x.is_neg() else x


def feature_major(x: Tensor) -> Tensor:
    """`x` `(features, batch)` with contiguous rows: itself, or a copy by the blocked transpose."""
    x = resolved(x)
    features, batch = x.shape
    if x.stride(1) == 1 or batch <= 1:
        return x
    if x.stride(0) != 1 or not x.is_cpu:
        return x.contiguous()
    out = new_matrix(x, features, batch)
    kernels.transpose(x.dtype is torch.float64, batch, features, x.data_ptr(), x.stride(1), out.data_ptr(), batch)
    return out


def new_matrix(like: Tensor, *shape: int) -> Tensor:
    """`like.new_empty(*shape)`, if large on huge pages: with small ones each row read at random costs a page walk."""
    made = like.new_empty(shape)
    bytes_ = made.numel() * made.element_size()
    if bytes_ >= _LARGE:
        kernels.advise_huge_pages(made.data_ptr(), bytes_)
    return made


def contiguous(x: Tensor) -> Tensor:
    x = resolved(x)
    return x if x.is_contiguous() else x.contiguous()  # the question is cheaper than the call


def _spmm(values: Tensor, x: Tensor, indptr: Tensor, indices: Tensor, t_indptr: Tensor, *_: Tensor) -> Tensor:
    return _product(values, indptr, indices, None, x, None, False)


def _spmm_t(
    values: Tensor,
    dy: Tensor,
    indptr: Tensor,
    indices: Tensor,
    t_indptr: Tensor,
    t_indices: Tensor,
    t_perm: Tensor,
    *_: Tensor,
) -> Tensor:
    return _product(values, t_indptr, t_indices, t_perm, dy, None, False)


def _product(
    values: Tensor, indptr: Tensor, indices: Tensor, perm: Tensor | None, x: Tensor, bias: Tensor | None, relu: bool
) -> Tensor:
    check_native(values, x)
    x, values = feature_major(x), contiguous(values)
    bias = None if bias is None else contiguous(bias)
    rows, batch = indptr.numel() - 1, x.shape[1]
    y = new_matrix(x, rows, batch)
    kernels.spmm(
        x.dtype is torch.float64,
        indptr.dtype is torch.int64,
        rows,
        indptr.data_ptr(),
        indices.data_ptr(),
        0 if perm is None else perm.data_ptr(),
        values.data_ptr(),
        x.data_ptr(),
        x.stride(0),
        y.data_ptr(),
        batch,
        batch,
        0 if bias is None else bias.data_ptr(),
        relu,
    )
    return y


def _sddmm(dy: Tensor, x: Tensor, indptr: Tensor, indices: Tensor, *_: Tensor) -> Tensor:
    check_native(dy, x)
    dy, x = feature_major(dy), feature_major(x)
    out = dy.new_empty(indices.numel())
    kernels.sddmm(
        dy.dtype is torch.float64,
        indptr.dtype is torch.int64,
        indptr.numel() - 1,
        indptr.data_ptr(),
        indices.data_ptr(),
        dy.data_ptr(),
        dy.stride(0),
        x.data_ptr(),
        x.stride(0),
        out.data_ptr(),
        dy.shape[1],
    )
    return out


def _linear_forward(
    values: Tensor, bias: Tensor | None, x: Tensor, relu: bool, indptr: Tensor, indices: Tensor, *_: Tensor
) -> Tensor:
    return _product(values, indptr, indices, None, x.t(), bias, relu).t().data  # no view: may be changed in place


def _linear_backward(
    values: Tensor,
    x: Tensor,
    y: Tensor | None,
    dy: Tensor,
    indptr: Tensor,
    indices: Tensor,
    t_indptr: Tensor,
    t_indices: Tensor,
    t_perm: Tensor,
    t_place: Tensor,
    need_input: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of values, bias and input; `x` `(in, batch)`, `y` and `dy` `(batch, out)`."""
    check_native(values, x, dy)
    batch, out_features = dy.shape
    y = None if y is None else feature_major(y.t()).t()  # hooks may have laid it out anew
    values, x, dy = contiguous(values), feature_major(x), resolved(dy)
    dvalues = torch.empty_like(values)
    dbias = dy.new_empty(out_features if need_bias else 0)
    dx = new_matrix(dy, t_indptr.numel() - 1, batch) if need_input else None
    ready = y is None and not need_bias and dy.stride(0) == 1  # feature-major already
    dz = None if ready else new_matrix(dy, out_features, batch)
    kernels.linear_backward(
        dy.dtype is torch.float64,
        indptr.dtype is torch.int64,
        out_features,
        indptr.data_ptr(),
        indices.data_ptr(),
        t_indptr.numel() - 1,
        t_indptr.data_ptr(),
        t_indices.data_ptr(),
        t_perm.data_ptr(),
        t_place.data_ptr(),
        values.data_ptr(),
        dy.data_ptr(),
        dy.stride(1),
        dy.stride(0),
        0 if y is None else y.data_ptr(),
        0 if y is None else y.stride(1),
        0 if dz is None else dz.data_ptr(),
        batch,
        dbias.data_ptr() if need_bias else 0,
        x.data_ptr(),
        x.stride(0),
        0 if dx is None else dx.data_ptr(),
        batch,
        dvalues.data_ptr(),
        batch,
    )
    return dvalues, dbias, dy.new_empty(0) if dx is None else dx.t()


# -- other devices --------------------------------------------------------------------------------------------------


def _reference_linear_backward(
    values: Tensor,
    x: Tensor,
    y: Tensor | None,
    dy: Tensor,
    indptr: Tensor,
    indices: Tensor,
    t_indptr: Tensor,
    t_indices: Tensor,
    t_perm: Tensor,
    t_place: Tensor,
    need_input: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dz = dy.t().contiguous() if y is None else torch.where(y <= 0, 0, dy).t().contiguous()
    dvalues = reference.sddmm(indptr, indices, dz, x)
    dbias = dz.sum(1) if need_bias else dy.new_empty(0)
    dx = reference.spmm_t(indptr, indices, values, dz, x.shape[0]).t() if need_input else dy.new_empty(0)
    return dvalues, dbias, dx


# -- operators ------------------------------------------------------------------------------------------------------

library = torch.library.Library("filigree", "DEF")
_PATTERN = "Tensor indptr, Tensor indices, Tensor t_indptr, Tensor t_indices, Tensor t_perm, Tensor t_place"


def define(schema: str, cpu: Any, default: Any, fake: Any) -> None:
    """An operator `torch.ops.filigree.*`: its CPU implementation, that of other devices, and that of fake tensors."""
    name = schema[: schema.index("(")]
    library.define(schema)
    library.impl(name, cpu, "CPU")
    library.impl(name, default, "CompositeExplicitAutograd")
    torch.library.register_fake(f"filigree::{name}", fake, lib=library)


define(
    f"spmm(Tensor values, Tensor x, {_PATTERN}) -> Tensor",
    _spmm,
    lambda values, x, indptr, indices, *_: reference.spmm(indptr, indices, values, x),
    lambda values, x, indptr, *_: x.new_empty(indptr.shape[0] - 1, x.shape[1]),
)
define(
    f"spmm_t(Tensor values, Tensor dy, {_PATTERN}) -> Tensor",
    _spmm_t,
    lambda values, dy, indptr, indices, t_indptr, *_: reference.spmm_t(
        indptr, indices, values, dy, t_indptr.numel() - 1
    ),
    lambda values, dy, indptr, indices, t_indptr, *_: dy.new_empty(t_indptr.shape[0] - 1, dy.shape[1]),
)
define(
    f"sddmm(Tensor dy, Tensor x, {_PATTERN}) -> Tensor",
    _sddmm,
    lambda dy, x, indptr, indices, *_: reference.sddmm(indptr, indices, dy, x),
    lambda dy, x, indptr, indices, *_: dy.new_empty(indices.shape[0]),
)
define(
    f"linear_forward(Tensor values, Tensor? bias, Tensor x, bool relu, {_PATTERN}) -> Tensor",
    _linear_forward,
    lambda values, bias, x, relu, indptr, indices, *_: reference.linear(indptr, indices, values, bias, x, relu),
    lambda values, bias, x, relu, indptr, *_: x.new_empty(indptr.shape[0] - 1, x.shape[0]).t(),
)
define(
    f"linear_backward(Tensor values, Tensor x, Tensor? y, Tensor dy, {_PATTERN}, bool need_input, bool need_bias)"
    " -> (Tensor, Tensor, Tensor)",
    _linear_backward,
    _reference_linear_backward,
    lambda values, x, y, dy, indptr, indices, t_indptr, t_indices, t_perm, t_place, need_input, need_bias: (
        torch.empty_like(values),
        dy.new_empty(dy.shape[1] if need_bias else 0),
        dy.new_empty(x.shape).t() if need_input else dy.new_empty(0),
    ),
)


if gpu.available:
    for _name, _kernel in {
        "spmm": lambda values, x, indptr, indices, *_: gpu.spmm(indptr, indices, values, x),
        "spmm_t": lambda values, dy, *index: gpu.spmm(index[2], index[3], values, dy, index[4]),
        "sddmm": lambda dy, x, indptr, indices, *_: gpu.sddmm(indptr, indices, dy, x),
        "linear_forward": gpu.linear_forward,
        "linear_backward": gpu.linear_backward,
    }.items():
        library.impl(_name, _kernel, "CUDA")


def _keep_values_and_matrix(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _spmm_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    values, x, *index = ctx.saved_tensors
    ops, needs = torch.ops.filigree, ctx.needs_input_grad
    dvalues = ops.sddmm(dy, x, *index) if needs[0] else None
    return dvalues, ops.spmm_t(values, dy, *index) if needs[1] else None, *(None,) * 6


def _spmm_t_backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
    values, dy, *index = ctx.saved_tensors
    ops, needs = torch.ops.filigree, ctx.needs_input_grad
    dvalues = ops.sddmm(dy, dx, *index) if needs[0] else None
    return dvalues, ops.spmm(values, dx, *index) if needs[1] else None, *(None,) * 6


def _sddmm_backward(ctx: Any, dvalues: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, *index = ctx.saved_tensors
    ops, needs = torch.ops.filigree, ctx.needs_input_grad
    ddy = ops.spmm(dvalues, x, *index) if needs[0] else None
    return ddy, ops.spmm_t(dvalues, dy, *index) if needs[1] else None, *(None,) * 6


for _name, _backward in [("spmm", _spmm_backward), ("spmm_t", _spmm_t_backward), ("sddmm", _sddmm_backward)]:
    torch.library.register_autograd(f"filigree::{_name}", _backward, setup_context=_keep_values_and_matrix, lib=library)


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    values, _, x, relu, *index = inputs
    ctx.save_for_backward(values, x, output if relu else None, *index)


def _linear_formula(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    values, x, y, *index = ctx.saved_tensors
    need_input, need_bias = ctx.needs_input_grad[2], ctx.needs_input_grad[1]
    dvalues, dbias, dx = torch.ops.filigree.linear_backward(values, x.t(), y, dy, *index, need_input, need_bias)
    return dvalues, dbias if need_bias else None, dx if need_input else None, *(None,) * 7


torch.library.register_autograd("filigree::linear_forward", _linear_formula, setup_context=_keep_linear, lib=library)


class _Linear(torch.autograd.Function):
    """`linear` for plain CPU tensors: straight to the kernels, at half the price a call of a dispatched operator."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: Tensor | None, x: Tensor, pattern: Pattern, relu: bool) -> Tensor:
        x_rows = feature_major(x.t())
        y = _linear_forward(values, bias, x_rows.t(), relu, *pattern)
        ctx.save_for_backward(values, x_rows, x, y if relu else None)
        ctx.pattern = pattern
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        values, x_rows, x, y = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        _, need_bias, need_input, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradient itself is to be differentiated
            dz = (dy if y is None else torch.where(y <= 0, 0, dy)).t()
            dvalues = torch.ops.filigree.sddmm(dz, x.t(), *pattern)
            dx = torch.ops.filigree.spmm_t(values, dz, *pattern).t()
            return dvalues, dz.sum(1) if need_bias else None, dx, None, None
        dvalues, dbias, dx = _linear_backward(values, x_rows, y, dy, *pattern, need_input, need_bias)
        return dvalues, dbias if need_bias else None, dx if need_input else None, None, None
