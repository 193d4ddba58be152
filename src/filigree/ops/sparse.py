"""Sparse products on feature-major matrices, with their gradients.

`spmm`, `spmm_t` and `sddmm` are closed under differentiation: the gradients of each are the other two. `linear` is
the layer: bias and ReLU fused in, one pass over the output's gradient for both products of its backward.

All are operators of the library `filigree` (`torch.ops.filigree.*`), so that `torch.compile`, fake tensors and
`torch.no_grad` treat them as torch's own. CPU tensors run the compiled kernels; other devices run
`filigree.ops.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from filigree.ops import gpu, reference
from filigree.ops._load import compiled, kernels
from filigree.ops.addresses import address, compressed_rows, matrix
from filigree.ops.chain import Link, chain_backward, chain_forward
from filigree.ops.memory import FLOATS, SHORT, check_native, contiguous, feature_major, in_memory, new_matrix
from filigree.ops.pattern import Pattern
from filigree.ops.transforms import batched_gradients, transforming


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
    if transforming():
        return reference.spmm(pattern, values, x)
    return torch.ops.filigree.spmm(values, x, *pattern)


def spmm_t(pattern: Pattern, values: Tensor, dy: Tensor) -> Tensor:
    """Transposed sparse times dense, `W^T dY`: `(rows, batch)` to `(cols, batch)`."""
    _check("spmm_t", values, dy, pattern.rows)
    _check_values("spmm_t", pattern, values)
    if transforming():
        return reference.spmm_t(pattern, values, dy)
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
    if transforming():
        return reference.sddmm(pattern, dy, x)
    return torch.ops.filigree.sddmm(dy, x, *pattern)


def linear(
    pattern: Pattern, values: Tensor, bias: Tensor | None, x: Tensor, relu: bool = False, by_feature: bool = True
) -> Tensor:
    """The sparse layer `y = relu(x W^T + bias)`.

    Args:
        pattern: of W, `(out_features, in_features)`.
        values: `(nnz,)` of x's type. Where that is bfloat16 or float16, they may also be float32; the layer reads and
            writes activations in 16 bits, and sums, values and the gradients of values and bias are float32.
        bias: `(out_features,)` or None.
        x: `(batch, in_features)` in any memory order.
        relu: apply ReLU.
        by_feature: make the output a transposed view of a feature-major matrix (strides `(1, batch)`), which the next
            sparse layer reads fastest; else it is contiguous. Compiled graphs and other devices than the CPU always do
            the former.

    Returns:
        `(batch, out_features)`.
    """
    if x.dim() != 2 or x.shape[1] != pattern.cols:
        raise ValueError(f"linear: x must be (batch, {pattern.cols}). Got {tuple(x.shape)}.")
    short = x.dtype in SHORT
    wanted = torch.float32 if short and values.dtype not in SHORT else None
    check_layer("linear", values, bias, x, pattern.nnz, pattern.rows, wanted)
    if short and x.is_cpu:
        values, bias = values.float(), None if bias is None else bias.float()
    elif x.dtype not in FLOATS and not (gpu.takes(x) and values.dtype is x.dtype):
        return in_float32(lambda v, b, x: linear(pattern, v, b, x, relu), values, bias, x)
    if in_memory(x):
        if torch.is_grad_enabled():
            return _LinearOnCPU.apply(values, bias, x, pattern, relu, by_feature)
        return chain_forward([Link(pattern, values, bias, relu)], x, by_feature)[0]
    if transforming():
        return reference.linear(pattern, values, bias, x, relu)
    return torch.ops.filigree.linear_forward(values, bias, x, relu, *pattern)


def in_float32(
    layer: Callable[[Tensor, Tensor | None, Tensor], Tensor], values: Tensor, bias: Tensor | None, x: Tensor
) -> Tensor:
    """`layer(values, bias, x)` computed in float32, its result in x's type: kernels do not read half precision."""
    return layer(values.float(), None if bias is None else bias.float(), x.float()).to(x.dtype)


def check_layer(
    name: str, values: Tensor, bias: Tensor | None, x: Tensor, nnz: int, rows: int, dtype: torch.dtype | None = None
) -> None:
    """Raise `ValueError` unless values `(nnz,)` and bias `(rows,)` are of a type, by default x's.

    Kernels read memory by address.
    """
    dtype = dtype or x.dtype
    if values.device != x.device:
        raise ValueError(f"{name}: values and x must be on one device. Got {values.device} and {x.device}.")
    if values.dtype is not dtype or values.shape != (nnz,):
        given = f"{tuple(values.shape)} of {values.dtype}"
        raise ValueError(f"{name}: values must be ({nnz},) of x's type {dtype}. Got {given}.")
    if bias is not None and (bias.dtype is not dtype or bias.shape != (rows,)):
        given = f"{tuple(bias.shape)} of {bias.dtype}"
        raise ValueError(f"{name}: bias must be ({rows},) of x's type {dtype}. Got {given}.")


def _check(name: str, values: Tensor, x: Tensor, features: int) -> None:
    if x.dim() != 2 or x.shape[0] != features:
        raise ValueError(f"{name}: expected a feature-major matrix ({features}, batch). Got {tuple(x.shape)}.")
    if values.dtype not in FLOATS or x.dtype != values.dtype:
        raise TypeError(f"{name}: expected float32 or float64 throughout. Got {values.dtype} and {x.dtype}.")


def _check_values(name: str, pattern: Pattern, values: Tensor) -> None:
    if values.shape != pattern.indices.shape:
        raise ValueError(f"{name}: values must be ({pattern.nnz},), one a connection. Got {tuple(values.shape)}.")


# -- the compiled path ----------------------------------------------------------------------------------------------


def csr_times(
    indptr: Tensor, indices: Tensor, perm: Tensor | None, values: Tensor, x: Tensor, bias: Tensor | None = None,
    relu: bool = False,
) -> Tensor:  # fmt: skip
    """`relu(W x + bias)` by the compiled kernel: a matrix in compressed rows times a feature-major one.

    Args:
        indptr, indices: W's compressed rows, `(rows + 1,)` and `(nnz,)`. perm: `(nnz,)`, which of `values` each nonzero
            is; None: they are in order.
        x: `(cols, batch)`. bias: `(rows,)` or None.

    Returns:
        `(rows, batch)`, contiguous.
    """
    check_native(values, x)
    x, values = feature_major(x), contiguous(values)
    bias = None if bias is None else contiguous(bias)
    rows, batch = indptr.shape[0] - 1, x.shape[1]
    y = new_matrix(x, rows, batch)
    kernels.spmm(
        x.dtype is torch.float64, compressed_rows(indptr, indices, perm), values.data_ptr(), matrix(x), matrix(y),
        batch, address(bias), relu,
    )  # fmt: skip
    return y


def _spmm(pattern: Pattern, values: Tensor, x: Tensor) -> Tensor:
    return csr_times(pattern.indptr, pattern.indices, None, values, x)


def _spmm_t(pattern: Pattern, values: Tensor, dy: Tensor) -> Tensor:
    return csr_times(pattern.t_indptr, pattern.t_indices, pattern.t_perm, values, dy)


def _sddmm(pattern: Pattern, dy: Tensor, x: Tensor) -> Tensor:
    check_native(dy, x)
    dy, x = feature_major(dy), feature_major(x)
    out = dy.new_empty(pattern.nnz)
    kernels.sddmm(
        dy.dtype is torch.float64, compressed_rows(pattern.indptr, pattern.indices), matrix(dy), matrix(x),
        out.data_ptr(), dy.shape[1],
    )  # fmt: skip
    return out


def _linear_forward(pattern: Pattern, values: Tensor, bias: Tensor | None, x: Tensor, relu: bool) -> Tensor:
    return chain_forward([Link(pattern, values, bias, relu)], x)[0]


def _linear_backward(
    pattern: Pattern, values: Tensor, x: Tensor, y: Tensor | None, dy: Tensor, need_input: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of values, bias and input; `x` `(in, batch)`, `y` and `dy` `(batch, out)`."""
    link = Link(pattern, values, None, y is not None)
    x = feature_major(x).t()  # so that its gradient has that order, too
    dx, [(dvalues, dbias)] = chain_backward([link], x, None, y, dy, need_input, [need_bias])
    return dvalues, values.new_empty(0) if dbias is None else dbias, dy.new_empty(0) if dx is None else dx


# -- operators ------------------------------------------------------------------------------------------------------

library = torch.library.Library("filigree", "DEF")


def define(schema: str, cpu: Any, default: Any, fake: Any, cuda: Any = None, matrix: Any = None) -> None:
    """Define an operator `torch.ops.filigree.*`.

    Args:
        cpu, default, fake, cuda: implementations for CPU tensors, for other devices (and where no kernels are
            compiled), for fake tensors, and (if there is one) for CUDA tensors.
        matrix: a named tuple of tensors, such as `Pattern`, that stand in the schema as `{matrix}`; implementations
            take it whole, as their first argument.
    """
    name, first = schema[: schema.index("(")], schema[: max(0, schema.find("{matrix}"))].count(",")

    def implementation(function: Any) -> Any:
        if matrix is None:
            return function
        end = first + len(matrix._fields)
        return lambda *args: function(matrix(*args[first:end]), *args[:first], *args[end:])

    library.define(schema.format(matrix=", ".join(f"Tensor {field}" for field in matrix._fields)) if matrix else schema)
    library.impl(name, implementation(cpu if compiled else default), "CPU")
    library.impl(name, implementation(default), "CompositeExplicitAutograd")
    if cuda is not None and gpu.available:
        library.impl(name, implementation(cuda), "CUDA")
    torch.library.register_fake(f"filigree::{name}", implementation(fake), lib=library)


define(
    "spmm(Tensor values, Tensor x, {matrix}) -> Tensor",
    _spmm,
    reference.spmm,
    lambda pattern, values, x: x.new_empty(pattern.indptr.shape[0] - 1, x.shape[1]),
    gpu.spmm,
    Pattern,
)
define(
    "spmm_t(Tensor values, Tensor dy, {matrix}) -> Tensor",
    _spmm_t,
    reference.spmm_t,
    lambda pattern, values, dy: dy.new_empty(pattern.t_indptr.shape[0] - 1, dy.shape[1]),
    gpu.spmm_t,
    Pattern,
)
define(
    "sddmm(Tensor dy, Tensor x, {matrix}) -> Tensor",
    _sddmm,
    reference.sddmm,
    lambda pattern, dy, x: dy.new_empty(pattern.indices.shape[0]),
    gpu.sddmm,
    Pattern,
)
define(
    "linear_forward(Tensor values, Tensor? bias, Tensor x, bool relu, {matrix}) -> Tensor",
    _linear_forward,
    reference.linear,
    lambda pattern, values, bias, x, relu: x.new_empty(pattern.indptr.shape[0] - 1, x.shape[0]).t(),
    gpu.linear,
    Pattern,
)
define(
    "linear_backward(Tensor values, Tensor x, Tensor? y, Tensor dy, {matrix}, bool need_input, bool need_bias)"
    " -> (Tensor, Tensor, Tensor)",
    _linear_backward,
    reference.linear_backward,
    lambda pattern, values, x, y, dy, need_input, need_bias: (
        torch.empty_like(values),
        values.new_empty(dy.shape[1] if need_bias else 0),
        dy.new_empty(x.shape).t() if need_input else dy.new_empty(0),
    ),
    gpu.linear_backward,
    Pattern,
)


def _keep_values_and_matrix(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


@batched_gradients
def _spmm_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    values, x, *index = ctx.saved_tensors
    pattern, needs = Pattern(*index), ctx.needs_input_grad
    dvalues = sddmm(pattern, dy, x) if needs[0] else None
    return dvalues, spmm_t(pattern, values, dy) if needs[1] else None, *(None,) * 6


@batched_gradients
def _spmm_t_backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
    values, dy, *index = ctx.saved_tensors
    pattern, needs = Pattern(*index), ctx.needs_input_grad
    dvalues = sddmm(pattern, dy, dx) if needs[0] else None
    return dvalues, spmm(pattern, values, dx) if needs[1] else None, *(None,) * 6


@batched_gradients
def _sddmm_backward(ctx: Any, dvalues: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, *index = ctx.saved_tensors
    pattern, needs = Pattern(*index), ctx.needs_input_grad
    ddy = spmm(pattern, dvalues, x) if needs[0] else None
    return ddy, spmm_t(pattern, dvalues, dy) if needs[1] else None, *(None,) * 6


for _name, _backward in [("spmm", _spmm_backward), ("spmm_t", _spmm_t_backward), ("sddmm", _sddmm_backward)]:
    torch.library.register_autograd(f"filigree::{_name}", _backward, setup_context=_keep_values_and_matrix, lib=library)


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    values, _, x, relu, *index = inputs
    ctx.save_for_backward(values, x, output if relu else None, *index)


@batched_gradients
def _linear_formula(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    values, x, y, *index = ctx.saved_tensors
    need_input, need_bias = ctx.needs_input_grad[2], ctx.needs_input_grad[1]
    if transforming():
        return *_gradients(Pattern(*index), values, x, y, dy, need_bias), *(None,) * 7
    dvalues, dbias, dx = torch.ops.filigree.linear_backward(values, x.t(), y, dy, *index, need_input, need_bias)
    return dvalues, dbias if need_bias else None, dx if need_input else None, *(None,) * 7


torch.library.register_autograd("filigree::linear_forward", _linear_formula, setup_context=_keep_linear, lib=library)


def _gradients(
    pattern: Pattern, values: Tensor, x: Tensor, y: Tensor | None, dy: Tensor, need_bias: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of values, bias and input by operations that can be differentiated and transformed again."""
    dz = (dy if y is None else torch.where(y <= 0, 0, dy)).t().to(values.dtype)
    dvalues, dx = sddmm(pattern, dz, x.t().to(values.dtype)), spmm_t(pattern, values, dz).t().to(x.dtype)
    return dvalues, dz.sum(1) if need_bias else None, dx


class _LinearOnCPU(torch.autograd.Function):
    """`linear` for plain CPU tensors: it calls the kernels directly, which halves the cost of a call."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, bias: Tensor | None, x: Tensor, pattern: Pattern, relu: bool, by_feature: bool
    ) -> Tensor:
        y, _ = chain_forward([Link(pattern, values, bias, relu)], x, by_feature)
        ctx.save_for_backward(values, x, y if relu else None)
        ctx.pattern = pattern
        return y

    @staticmethod
    @batched_gradients
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        values, x, y = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        _, need_bias, need_input, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled() or transforming():  # the gradient itself is to be differentiated, or is batched
            return *_gradients(pattern, values, x, y, dy, need_bias), None, None, None
        link = Link(pattern, values, None, y is not None)
        dx, [(dvalues, dbias)] = chain_backward([link], x, None, y, dy, need_input, [need_bias])
        return dvalues, dbias, dx, None, None, None
