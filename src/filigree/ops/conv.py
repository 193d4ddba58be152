"""Sparse convolution: a nonzero of the weight is an offset into the padded planes of the input.

With the input's channels padded and laid out flat, `(channel, image, row, column)`, a tap `(c, i, j)` of a kernel is
the plane of channel c shifted by a constant; so a convolution is `spmm` whose column indices are addresses, its input
gradient `spmm` with the transposed index, its weight gradient `sddmm`: the kernels of `filigree.ops.sparse` serve
unchanged. Rows share their padding with their neighbours, and images theirs, so little is computed in vain. A stride
splits the planes by phase (every s-th row and column), after which each tap is a plain shift again.

Images are packed a few at a time, so that what is packed stays in the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from filigree.ops import reference
from filigree.ops._load import kernels
from filigree.ops.sparse import FLOATS, csr_pattern, define, library

_CHUNK = 4 << 20  # bytes of packed input at a time: a share of the last-level cache


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
        # the zeros behind a row are those before the next one
        pitch = -(-max(size + max(lead, trail), stride * out) // stride)
        phases = stride if any(tap * dilation % stride for tap in range(kernel)) else 1
        return cls(size, out, lead, stride, phases, pitch, span // stride)


class _Plan(NamedTuple):
    """Addresses of the nonzeros for an input's size, and the layout of the packed planes."""

    rows: _Axis
    cols: _Axis
    images: int  # packed at a time
    stride: int  # from one plane to the next
    reach: int  # of the farthest tap
    planes: int  # of the input
    indptr: Tensor
    offsets: Tensor
    t_indptr: Tensor
    t_offsets: Tensor
    t_perm: Tensor

    @property
    def wide(self) -> bool:
        return self.indptr.dtype is torch.int64

    def span(self, images: int) -> int:
        """Positions of a plane of so many images."""
        return images * self.rows.pitch * self.cols.pitch

    def outputs(self, images: int) -> int:
        """Positions up to the last output."""
        last_row = (images - 1) * self.rows.pitch + self.rows.out - 1
        return last_row * self.cols.pitch + self.cols.out


_plans: Any = WeakTensorKeyDictionary()  # by the pattern's indices: rewired layers bring new ones


def _plan(indptr: Tensor, indices: Tensor, x: Tensor, g: Geometry) -> _Plan:
    images, channels, height, width = x.shape
    rows, cols = g._axes(height, width)
    planes = channels * rows.phases * cols.phases
    chunk = max(1, min(images, _CHUNK // (planes * rows.pitch * cols.pitch * x.element_size())))
    known = _plans.setdefault(indices, {})
    key = (g, height, width, chunk, indices._version)
    if key in known:
        return known[key]
    reach = rows.reach * cols.pitch + cols.reach
    stride = _off_the_same_sets(chunk * rows.pitch * cols.pitch + reach)
    outs = indptr.numel() - 1
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
    if len(known) > 8:
        known.clear()
    known[key] = _Plan(
        rows, cols, chunk, stride, reach, planes, by_plane.indptr, offsets, by_plane.t_indptr, t_offsets,
        by_plane.t_perm,
    )  # fmt: skip
    return known[key]


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
    if x.dtype not in FLOATS:  # half precision is computed in float32
        wide = conv2d(values.float(), None if bias is None else bias.float(), x.float(), indptr, indices, g)
        return wide.to(x.dtype)
    return torch.ops.filigree.conv2d_forward(values, bias, x, indptr, indices, g.flat())


# -- the compiled path ----------------------------------------------------------------------------------------------


def _forward(
    values: Tensor, bias: Tensor | None, x: Tensor, indptr: Tensor, indices: Tensor, geometry: list[int]
) -> Tensor:
    g = Geometry.of(geometry)
    plan, outs, double = _plan(indptr, indices, x, g), indptr.numel() - 1, x.dtype is torch.float64
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    y = _channel_major(x, outs, plan.rows.out, plan.cols.out)
    packed, products = x.new_empty(plan.planes, plan.stride), x.new_empty(outs, plan.stride)
    for some, ys in zip(x.split(plan.images), y.split(plan.images), strict=True):
        _pack(some, plan.rows, plan.cols, packed, 0)
        kernels.spmm(
            double, plan.wide, outs, plan.indptr.data_ptr(), plan.offsets.data_ptr(), 0, values.data_ptr(),
            packed.data_ptr(), 1, products.data_ptr(), plan.stride, plan.outputs(len(some)),
            0 if bias is None else bias.data_ptr(), False,
        )  # fmt: skip
        _unpack(products, _as_output(plan.rows), _as_output(plan.cols), ys)
    return y


def _backward(
    values: Tensor, x: Tensor, dy: Tensor, indptr: Tensor, indices: Tensor, geometry: list[int],
    need_input: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of values, bias and input. The input is packed again rather than kept: memory for time."""
    g = Geometry.of(geometry)
    plan, outs, double = _plan(indptr, indices, x, g), indptr.numel() - 1, x.dtype is torch.float64
    values, front = values.contiguous(), plan.reach
    dx = _channel_major(x, *x.shape[1:]) if need_input else x.new_empty(0)
    dvalues, part = torch.zeros_like(values), torch.empty_like(values)
    packed, dys = x.new_empty(plan.planes, plan.stride), x.new_empty(outs, plan.stride)
    dxs = torch.empty_like(packed) if need_input else packed
    for start in range(0, len(x), plan.images):
        some, grads = x[start : start + plan.images], dy[start : start + plan.images]
        _pack(some, plan.rows, plan.cols, packed, 0)
        _pack(grads, _as_output(plan.rows), _as_output(plan.cols), dys, front)
        if need_input:
            kernels.backward(
                double, plan.wide, plan.planes, plan.t_indptr.data_ptr(), plan.t_offsets.data_ptr(),
                plan.t_perm.data_ptr(), values.data_ptr(), dys.data_ptr(), 1, packed.data_ptr(), plan.stride,
                dxs.data_ptr(), plan.stride, part.data_ptr(), plan.span(len(some)),
            )  # fmt: skip
            _unpack(dxs, plan.rows, plan.cols, dx[start : start + plan.images])
        else:
            kernels.sddmm(
                double, plan.wide, outs, plan.indptr.data_ptr(), plan.offsets.data_ptr(),
                dys.data_ptr() + front * dys.element_size(), plan.stride, packed.data_ptr(), 1, part.data_ptr(),
                plan.outputs(len(some)),
            )  # fmt: skip
        dvalues += part
    return dvalues, dy.sum((0, 2, 3)) if need_bias else dy.new_empty(0), dx


def _channel_major(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    return x.new_empty(channels, len(x), height, width).transpose(0, 1)


def _as_output(axis: _Axis) -> _Axis:
    """The same planes as the output lies in them: nothing before, no phases."""
    return axis._replace(lead=0, stride=1, phases=1)


def _pack(images: Tensor, rows: _Axis, cols: _Axis, out: Tensor, front: int) -> None:
    kernels.pack(
        out.dtype is torch.float64, images.shape, images.stride(), _steps(rows), _steps(cols), images.data_ptr(),
        out.data_ptr(), out.stride(0), front,
    )  # fmt: skip


def _unpack(packed: Tensor, rows: _Axis, cols: _Axis, images: Tensor) -> None:
    kernels.unpack(
        packed.dtype is torch.float64, images.shape, images.stride(), _steps(rows), _steps(cols), packed.data_ptr(),
        packed.stride(0), images.data_ptr(),
    )  # fmt: skip


def _steps(axis: _Axis) -> tuple[int, int, int, int]:
    return axis.lead, axis.stride, axis.phases, axis.pitch


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
    return _channel_major(x, indptr.shape[0] - 1, *Geometry.of(geometry).output(*x.shape[2:]))


def _fake_backward(
    values: Tensor, x: Tensor, dy: Tensor, indptr: Tensor, indices: Tensor, geometry: list[int],
    need_input: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dx = _channel_major(x, *x.shape[1:]) if need_input else x.new_empty(0)
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


def _formula(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    values, bias, x, *index = ctx.saved_tensors
    _, need_bias, need_input, *_ = ctx.needs_input_grad
    if torch.is_grad_enabled():  # the gradient itself is to be differentiated
        needed = [t for t in (values, bias, x) if t is not None and t.requires_grad]
        y = _dense(values, bias, x, index[0], index[1], ctx.geometry)
        found = dict(zip(map(id, needed), torch.autograd.grad(y, needed, dy, create_graph=True), strict=True))
        return *(found.get(id(t)) for t in (values, bias, x)), None, None, None
    dvalues, dbias, dx = torch.ops.filigree.conv2d_backward(values, x, dy, *index, ctx.geometry, need_input, need_bias)
    return dvalues, dbias if need_bias else None, dx if need_input else None, None, None, None


torch.library.register_autograd("filigree::conv2d_forward", _formula, setup_context=_keep, lib=library)
