"""The kernels of `gpu_sell.py`: one program a row, which stays in registers. Importing this loads Triton.

The Fourier transform inside is radix 2; inputs are read and outputs written in bit-reversed order, so that no shuffle
is needed but the mirror k -> m - k.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _pairs(v, H: tl.constexpr, N: tl.constexpr):
    """The numbers H apart, as two arrays `(N / 2H, H)`."""
    return tl.split(tl.permute(tl.reshape(v, (N // (2 * H), 2, H)), (0, 2, 1)))


@triton.jit
def _joined(a, b, H: tl.constexpr, N: tl.constexpr):
    return tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), (N,))


@triton.jit
def _rotations(wr, wi, H: tl.constexpr, M: tl.constexpr):
    turn = tl.arange(0, H) * (M // (2 * H))
    return tl.load(wr + turn)[None, :], tl.load(wi + turn)[None, :]


@triton.jit
def _in_time(zr, zi, wr, wi, H: tl.constexpr, M: tl.constexpr):
    """Butterflies of numbers H apart: rotated, then added and subtracted."""
    c, d = _rotations(wr, wi, H, M)
    ar, br = _pairs(zr, H, M)
    ai, bi = _pairs(zi, H, M)
    er, ei = br * c - bi * d, br * d + bi * c
    return _joined(ar + er, ar - er, H, M), _joined(ai + ei, ai - ei, H, M)


@triton.jit
def _in_frequency(zr, zi, wr, wi, H: tl.constexpr, M: tl.constexpr):
    """Their transpose: added and subtracted, then rotated back."""
    c, d = _rotations(wr, wi, H, M)
    ar, br = _pairs(zr, H, M)
    ai, bi = _pairs(zi, H, M)
    er, ei = ar - br, ai - bi
    return _joined(ar + br, er * c + ei * d, H, M), _joined(ai + bi, ei * c - er * d, H, M)


@triton.jit
def _fourier(zr, zi, wr, wi, M: tl.constexpr, LOG: tl.constexpr):
    """From bit-reversed to natural order, decimation in time."""
    for s in tl.static_range(LOG):
        zr, zi = _in_time(zr, zi, wr, wi, 1 << s, M)
    return zr, zi


@triton.jit
def _inverse_fourier(zr, zi, wr, wi, M: tl.constexpr, LOG: tl.constexpr):
    """From natural to bit-reversed order, decimation in frequency, conjugate rotations; M times the inverse."""
    for s in tl.static_range(LOG):
        zr, zi = _in_frequency(zr, zi, wr, wi, M >> (s + 1), M)
    return zr, zi


@triton.jit
def _dct(zr, zi, tables, N: tl.constexpr, LOG: tl.constexpr):
    """From pairs of the even-then-odd-backwards order, bit-reversed: X_k, and X_(n-k) (X_m at k = 0), k < m."""
    M: tl.constexpr = N // 2
    wr, wi, cr, ci, hr, hi = tables, tables + M, tables + 2 * M, tables + 3 * M, tables + 4 * M, tables + 5 * M
    zr, zi = _fourier(zr, zi, wr, wi, M, LOG)
    k = tl.arange(0, M)
    mirror = (M - k) % M
    yr, yi = tl.gather(zr, mirror, 0), tl.gather(zi, mirror, 0)
    er, ei, orr, oi = (zr + yr) * 0.5, (zi - yi) * 0.5, (zi + yi) * 0.5, (yr - zr) * 0.5
    a, b = tl.load(hr + k), tl.load(hi + k)
    vr, vi = er + orr * a - oi * b, ei + orr * b + oi * a
    c, d = tl.load(cr + k), tl.load(ci + k)
    first, other = 1 / tl.sqrt(N + 0.0), tl.sqrt(2.0 / N)
    low = tl.where(k == 0, (zr + zi) * first, (vr * c - vi * d) * other)
    high = tl.where(k == 0, (zr - zi) * first, -(vr * d + vi * c) * other)
    return low, high


@triton.jit
def _idct(low, high, tables, N: tl.constexpr, LOG: tl.constexpr):
    """The transpose: pairs of the even-then-odd-backwards order, bit-reversed."""
    M: tl.constexpr = N // 2
    wr, wi, cr, ci, hr, hi = tables, tables + M, tables + 2 * M, tables + 3 * M, tables + 4 * M, tables + 5 * M
    k = tl.arange(0, M)
    c, d = tl.load(cr + k), tl.load(ci + k)
    vr, vi = low * c - high * d, -(low * d + high * c)
    mirror = (M - k) % M
    ur, ui = tl.gather(vr, mirror, 0), tl.gather(vi, mirror, 0)
    first, other = 1 / tl.sqrt(N + 0.0), tl.sqrt(2.0 / N) * 0.5
    er, ei, fr, fi = (vr + ur) * other, (vi - ui) * other, (vr - ur) * other, (vi + ui) * other
    a, b = tl.load(hr + k), tl.load(hi + k)
    orr, oi = fr * a + fi * b, fi * a - fr * b
    zr = tl.where(k == 0, (low + high) * first, er - oi)
    zi = tl.where(k == 0, (low - high) * first, ei + orr)
    return _inverse_fourier(zr, zi, wr, wi, M, LOG)


@triton.jit
def acdc_kernel(
    x, a, d, bias, y, tables, positions, n_in, n_out, x_stride, y_stride,
    N: tl.constexpr, LOG: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = N // 2
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, M)
    p, q = tl.load(positions + k), tl.load(positions + M + k)
    zr = tl.load(x + row * x_stride + p, mask=p < n_in, other=0.0) * tl.load(a + p)
    zi = tl.load(x + row * x_stride + q, mask=q < n_in, other=0.0) * tl.load(a + q)
    low, high = _dct(zr, zi, tables, N, LOG)
    far = tl.where(k == 0, M, N - k)
    low, high = low * tl.load(d + k), high * tl.load(d + far)
    if HAS_BIAS:
        low, high = low + tl.load(bias + k), high + tl.load(bias + far)
    zr, zi = _idct(low, high, tables, N, LOG)
    tl.store(y + row * y_stride + p, zr, mask=p < n_out)
    tl.store(y + row * y_stride + q, zi, mask=q < n_out)


@triton.jit
def acdc_backward_kernel(
    x, a, d, dy, dx, da, dd, dbias, tables, positions, n_in, n_out, x_stride, dy_stride,
    N: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = N // 2
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, M)
    p, q = tl.load(positions + k), tl.load(positions + M + k)
    far = tl.where(k == 0, M, N - k)
    xr = tl.load(x + row * x_stride + p, mask=p < n_in, other=0.0)
    xi = tl.load(x + row * x_stride + q, mask=q < n_in, other=0.0)
    ar, ai = tl.load(a + p), tl.load(a + q)
    low, high = _dct(xr * ar, xi * ai, tables, N, LOG)
    gr = tl.load(dy + row * dy_stride + p, mask=p < n_out, other=0.0)
    gi = tl.load(dy + row * dy_stride + q, mask=q < n_out, other=0.0)
    near, off = _dct(gr, gi, tables, N, LOG)
    tl.store(dbias + row * N + k, near)
    tl.store(dbias + row * N + far, off)
    tl.store(dd + row * N + k, near * low)
    tl.store(dd + row * N + far, off * high)
    rr, ri = _idct(near * tl.load(d + k), off * tl.load(d + far), tables, N, LOG)
    tl.store(da + row * N + p, xr * rr)
    tl.store(da + row * N + q, xi * ri)
    tl.store(dx + row * n_in + p, ar * rr, mask=p < n_in)
    tl.store(dx + row * n_in + q, ai * ri, mask=q < n_in)


@triton.jit
def _sums_and_differences(v, H: tl.constexpr, N: tl.constexpr):
    a, b = _pairs(v, H, N)
    return _joined(a + b, a - b, H, N)


@triton.jit
def hadamard_kernel(x, y, x_stride, scale, N: tl.constexpr, LOG: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, N)
    v = tl.load(x + row * x_stride + at)
    for s in tl.static_range(LOG):
        v = _sums_and_differences(v, 1 << s, N)
    tl.store(y + row * N + at, v * scale)
