"""Sparse convolution: a nonzero of the weight is an offset into the padded planes of the input.

With the input's channels padded and laid out flat, `(channel, image, row, column)`, a tap `(c, i, j)` of a kernel is
the plane of channel c shifted by a constant; so a convolution is `spmm` whose column indices are addresses, its input
gradient `spmm` with the transposed index, its weight gradient `sddmm`: the kernels of `filigree.ops.sparse` serve
unchanged. Rows share their padding with their neighbours, and images theirs, so few of the computed numbers are not
used. A stride splits the planes by phase (every s-th row and column), after which each tap is a plain shift again.

Images are packed a few at a time, each thread its own, so that what is packed stays in its cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from filigree.ops import reference
from filigree.ops._load import kernels
from filigree.ops.addresses import address, compressed_rows
from filigree.ops.pattern import csr_pattern
from filigree.ops.sparse import (
    FLOATS,
    check_layer,
    check_native,
    contiguous,
    define,
    in_float32,
    library,
    new_matrix,
    resolved,
)  # fmt: skip
from filigree.ops.transforms import batched_gradients, gradients, transforming

_CHUNK = 256 << 10  # bytes of packed input at a time: with the output and its gradient, a share of level 2


class Geometry(NamedTuple):
    """The hyperparameters of a convolution; `padding` is (top, bottom, left, right)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    def output(self, height: int, width: int) -> tuple[int, int]:
        """The sides of the output. `ValueError` if the kernel does not fit."""
        axes = self._axes(height, width)
        return axes[0].out, axes[1].out

    def _axes(self, height: int, width: int) -> tuple[_Axis, _Axis]:
        k, s, p, d = self.kernel, self.stride, self.padding, self.dilation
        return _Axis.of(height, k[0], s[0], p[0], p[1], d[0]), _Axis.of(width, k[1], s[1], p[2], p[3], d[1])

    def flat(self) -> list[int]:
        return [*self.kernel, *self.stride, *self.padding, *self.dilation, self.groups]

    @classmethod
    def of(cls, flat: list[int]) -> Geometry:
        a, b, c, d, e, f, g, h, i, j, groups = flat
        return cls((a, b), (c, d), (e, f, g, h), (i, j), groups)


class _Axis(NamedTuple):
    """Rows or columns of the packed planes."""

    size: int
    out: int
    lead: int  # zeros before the first
    stride: int
    phases: int  # planes a channel is split into
    pitch: int  # from one row (or image) of a plane to the next
    reach: int  # of the farthest tap, in steps of a plane

    @classmethod
    def of(cls, size: int, kernel: int, stride: int, lead: int, trail: int, dilation: int) -> _Axis:
        span = dilation * (kernel - 1)
        out = (size + lead + trail - span - 1) // stride + 1
        if size + lead + trail <= span or size < 1:
            raise ValueError(
                f"conv2d: the kernel spans {span + 1}, more than the padded input's {size + lead + trail}."
            )
        # the zeros after a row are those before the next one
        pitch = -(-max(size + max(lead, trail), stride * out) // stride)
        phases = stride if any(tap * dilation % stride for tap in range(kernel)) else 1
        return cls(size, out, lead, stride, phases, pitch, span // stride)


class _Plan(NamedTuple):
    """The addresses of the nonzeros for an input's size, as the kernels read them, and the tensors that hold them."""

    convolution: tuple[Any, ...]
    held: tuple[Tensor, ...]


_plans: Any = WeakTensorKeyDictionary()  # by the pattern's indices: rewired layers bring new ones


def _plan(indptr: Tensor, indices: Tensor, x: Tensor, g: Geometry) -> _Plan:
    images, channels, height, width = x.shape
    plans = _plans.setdefault(indices, {})
    key = (g, x.shape, x.dtype, None if indices.is_inference() else indices._version)
    if (plan := plans.get(key)) is not None:
        return plan
    rows, cols = g._axes(height, width)
    planes, outs = channels * rows.phases * cols.phases, indptr.numel() - 1
    chunk = max(1, min(images, _CHUNK // (planes * rows.pitch * cols.pitch * x.element_size())))
    reach = rows.reach * cols.pitch + cols.reach
    stride = _off_the_same_sets(chunk * rows.pitch * cols.pitch + reach)
    dtype = np.int32 if max(planes, outs) * stride < 2**31 and indices.numel() < 2**31 else np.int64
    column = indices.numpy().astype(np.int64)
    row = np.repeat(np.arange(outs), np.diff(indptr.numpy()))
    taps = g.kernel[0] * g.kernel[1]
    channel = row // (outs // g.groups) * (channels // g.groups) + column // taps
    u, v = column % taps // g.kernel[1] * g.dilation[0], column % g.kernel[1] * g.dilation[1]
    plane = (channel * rows.phases + u % rows.stride) * cols.phases + v % cols.stride
    shift = u // rows.stride * cols.pitch + v // cols.stride
    by_plane = csr_pattern(indptr.numpy().astype(dtype), plane.astype(dtype), planes)
    back = by_plane.t_indices.numpy() * stride + reach - shift[by_plane.t_perm.numpy()]
    offsets, t_offsets = (torch.from_numpy(a.astype(dtype)) for a in (plane * stride + shift, back))
    held = by_plane.indptr, offsets, by_plane.t_indptr, t_offsets, by_plane.t_perm
    axes = [(axis.lead, axis.stride, axis.phases, axis.pitch) for axis in (rows, cols)]
    convolution = (
        (*x.shape, *axes), (images, outs, rows.out, cols.out, (0, 1, 1, rows.pitch), (0, 1, 1, cols.pitch)),
        compressed_rows(*held[:2]), compressed_rows(*held[2:]), stride, reach, chunk,
    )  # fmt: skip
    if len(plans) > 8:
        plans.clear()
    plans[key] = plan = _Plan(convolution, held)  # another thread may clear the dictionary
    return plan


def _off_the_same_sets(length: int) -> int:
    """At least `length`, whole vectors, and no multiple of a page: planes would share the same sets of the cache."""
    length = -(-length // 16) * 16
    return length + 16 if length % 512 == 0 else length


def conv2d(values: Tensor, bias: Tensor | None, x: Tensor, indptr: Tensor, indices: Tensor, g: Geometry) -> Tensor:
    """Sparse 2-D convolution (cross-correlation, as torch's), `y[n, o] = b[o] + sum_k v_k x_padded[n, c_k] shifted`.

    Args:
        values: `(nnz,)`.
        bias: `(out_channels,)` or None.
        x: `(images, in_channels, height, width)`, in any memory order.
        indptr, indices: compressed rows of the weight as `(out_channels, in_channels / groups * kh * kw)`.
        g: the hyperparameters.

    Returns:
        `(images, out_channels, out_height, out_width)`, channel-major in memory (`y.transpose(0, 1)` is contiguous):
        element-wise operations keep that order, and the next sparse convolution reads it row by row.

    Equivalent to `torch.nn.functional.conv2d` with the dense weight, in O(nnz x outputs).
    """
    check_layer("conv2d", values, bias, x, indices.numel(), indptr.numel() - 1)
    if x.dtype not in FLOATS:
        return in_float32(lambda v, b, x: conv2d(v, b, x, indptr, indices, g), values, bias, x)
    if transforming():
        return _dense(values, bias, x, indptr, indices, g.flat())
    return torch.ops.filigree.conv2d_forward(values, bias, x, indptr, indices, g.flat())


# -- the compiled path ----------------------------------------------------------------------------------------------


def _forward(
    values: Tensor, bias: Tensor | None, x: Tensor, indptr: Tensor, indices: Tensor, geometry: list[int]
) -> Tensor:
    g = Geometry.of(geometry)
    check_native(values, x)
    y = _channel_major(x, indptr.numel() - 1, *g.output(*x.shape[2:]))
    if y.numel():
        values, bias, x = contiguous(values), None if bias is None else contiguous(bias), resolved(x)
        plan = _plan(indptr, indices, x, g)
        kernels.conv(
            x.dtype is torch.float64, plan.convolution, values.data_ptr(), address(bias), (x.data_ptr(), *x.stride()),
            (y.data_ptr(), *y.stride()),
        )  # fmt: skip
    return y.data  # no view of another tensor, so that it may be changed in place


def _backward(
    values: Tensor, x: Tensor, dy: Tensor, indptr: Tensor, indices: Tensor, geometry: list[int],
    need_input: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of values, bias and input. The input is packed again rather than kept: memory for time."""
    check_native(values, x, dy)
    values, x, dy = contiguous(values), resolved(x), resolved(dy)
    dvalues, dbias = torch.zeros_like(values), dy.new_zeros(dy.shape[1] if need_bias else 0)
    dx = _channel_major(x, *x.shape[1:]) if need_input else x.new_empty(0)
    if dy.numel():
        plan = _plan(indptr, indices, x, Geometry.of(geometry))
        kernels.conv_backward(
            x.dtype is torch.float64, plan.convolution, values.data_ptr(), (x.data_ptr(), *x.stride()),
            (dy.data_ptr(), *dy.stride()), dvalues.data_ptr(), dbias.data_ptr() if need_bias else 0,
            dx.data_ptr() if need_input else 0,
        )  # fmt: skip
    return dvalues, dbias, dx


def _channel_major(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    return new_matrix(x, channels, len(x), height, width).transpose(0, 1)


# -- other devices, and derivatives of derivatives: the dense weight --------------------------------------------------


def _dense(
    values: Tensor, bias: Tensor | None, x: Tensor, indptr: Tensor, indices: Tensor, geometry: list[int]
) -> Tensor:
    g = Geometry.of(geometry)
    channels = x.shape[1] // g.groups
    weight = reference.dense(indptr, indices, values, channels * g.kernel[0] * g.kernel[1])
    top, bottom, left, right = g.padding
    return torch.nn.functional.conv2d(
        torch.nn.functional.pad(x, (left, right, top, bottom)), weight.view(-1, channels, *g.kernel), bias, g.stride,
        0, g.dilation, g.groups,
    )  # fmt: skip


def _dense_backward(
    values: Tensor, x: Tensor, dy: Tensor, indptr: Tensor, indices: Tensor, geometry: list[int],
    need_input: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with torch.enable_grad():
        v, inner = (t.detach().requires_grad_() for t in (values, x))
        y = _dense(v, None, inner, indptr, indices, geometry)
    dvalues, dx = torch.autograd.grad(y, [v, inner], dy)
    return dvalues, dy.sum((0, 2, 3)) if need_bias else dy.new_empty(0), dx if need_input else dy.new_empty(0)


# -- operators ------------------------------------------------------------------------------------------------------


def _fake_forward(
    values: Tensor, bias: Tensor | None, x: Tensor, indptr: Tensor, indices: Tensor, geometry: list[int]
) -> Tensor:
    sides = Geometry.of(geometry).output(*x.shape[2:])
    return x.new_empty(indptr.shape[0] - 1, len(x), *sides).transpose(0, 1)


def _fake_backward(
    values: Tensor, x: Tensor, dy: Tensor, indptr: Tensor, indices: Tensor, geometry: list[int],
    need_input: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dx = x.new_empty(x.shape[1], len(x), *x.shape[2:]).transpose(0, 1) if need_input else x.new_empty(0)
    return torch.empty_like(values), dy.new_empty(dy.shape[1] if need_bias else 0), dx


define(
    "conv2d_forward(Tensor values, Tensor? bias, Tensor x, Tensor indptr, Tensor indices, int[] geometry) -> Tensor",
    _forward, _dense, _fake_forward,
)  # fmt: skip
define(
    "conv2d_backward(Tensor values, Tensor x, Tensor dy, Tensor indptr, Tensor indices, int[] geometry,"
    " bool need_input, bool need_bias) -> (Tensor, Tensor, Tensor)",
    _backward, _dense_backward, _fake_backward,
)  # fmt: skip


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, bias, x, indptr, indices, ctx.geometry = inputs
    ctx.save_for_backward(values, bias, x, indptr, indices)


@batched_gradients
def _formula(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    values, bias, x, *index = ctx.saved_tensors
    _, need_bias, need_input, *_ = ctx.needs_input_grad
    if torch.is_grad_enabled() or transforming():  # it is to be differentiated itself, or is batched
        computed = gradients(
            lambda v, b, x: _dense(v, b, x, index[0], index[1], ctx.geometry), (values, bias, x),
            ctx.needs_input_grad[:3], dy,
        )  # fmt: skip
        return *computed, None, None, None
    dvalues, dbias, dx = torch.ops.filigree.conv2d_backward(values, x, dy, *index, ctx.geometry, need_input, need_bias)
    return dvalues, dbias if need_bias else None, dx if need_input else None, None, None, None


torch.library.register_autograd("filigree::conv2d_forward", _formula, setup_context=_keep, lib=library)
