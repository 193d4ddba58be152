"""Structured layers as Triton kernels, for CUDA tensors: one program a row, which stays in registers.

`acdc` is one order of an ACDC layer in one pass over memory, `hadamard` a Walsh-Hadamard transform. The kernels are in
`triton_transforms.py`; when they are loaded and how they are tested without a GPU says `gpu.py`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from filigree.ops import gpu
from filigree.ops.once_differentiable import once_differentiable
from filigree.optional import needed

available = gpu.available


@functools.cache
def _kernels() -> Any:
    return needed("filigree.ops.triton_transforms", "filigree.ops.gpu_sell", "gpu")


class _Hadamard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows, n = x.shape
        x = x if x.stride(1) == 1 else x.contiguous()
        y = x.new_empty(rows, n)
        if rows:
            _kernels().hadamard_kernel[(rows,)](x, y, x.stride(0), n**-0.5, N=n, LOG=_log2(n), num_warps=_warps(n))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return _Hadamard.apply(dy)


class _Acdc(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, d: Tensor, bias: Tensor | None, outs: int) -> Tensor:
        rows, ins = x.shape
        n = len(a)
        x = x if x.stride(1) == 1 else x.contiguous()
        ctx.save_for_backward(x, a, d)
        y = x.new_empty(rows, outs)
        tables, positions = _tables(n, x.dtype, x.device)
        if rows:
            _kernels().acdc_kernel[(rows,)](
                x, a, d, d if bias is None else bias, y, tables, positions, ins, outs, x.stride(0), outs, N=n,
                LOG=_log2(n) - 1, HAS_BIAS=bias is not None, num_warps=_warps(n),
            )  # fmt: skip
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, a, d = ctx.saved_tensors
        (rows, ins), n = x.shape, len(a)
        dy = dy if dy.stride(1) == 1 else dy.contiguous()
        dx = x.new_empty(rows, ins)
        da, dd, dbias = (x.new_empty(rows, n) for _ in range(3))
        tables, positions = _tables(n, x.dtype, x.device)
        if rows:
            _kernels().acdc_backward_kernel[(rows,)](
                x, a, d, dy, dx, da, dd, dbias, tables, positions, ins, dy.shape[1], x.stride(0), dy.stride(0), N=n,
                LOG=_log2(n) - 1, num_warps=_warps(n),
            )  # fmt: skip
        return dx, da.sum(0), dd.sum(0), dbias.sum(0) if ctx.needs_input_grad[3] else None, None


def hadamard(x: Tensor) -> Tensor:
    """`x H / sqrt(n)` of the rows of x `(rows, n)`, n a power of two of at least 2."""
    return _Hadamard.apply(x)


def acdc(x: Tensor, a: Tensor, d: Tensor, bias: Tensor | None, outs: int) -> Tensor:
    """`idct(d * dct(a * x) + bias)` of the rows of x `(rows, at most n)`, n = len(a) a power of two of at least 4."""
    return _Acdc.apply(x, a, d, bias, outs)


def _log2(n: int) -> int:
    return n.bit_length() - 1


def _warps(n: int) -> int:
    """8 numbers of a row a thread, so that they stay in registers, up to the most warps that there are."""
    return max(1, min(32, n // 256))


@functools.lru_cache(maxsize=32)
def _tables(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rotations (six rows of m: of the transform, the cosine, the halves), and the positions of each pair."""
    m = n // 2
    k = torch.arange(m, dtype=torch.float64)
    angles = [-2 * math.pi * k / m, -math.pi * k / (2 * n), -2 * math.pi * k / n]
    tables = torch.stack([part for angle in angles for part in (angle.cos(), angle.sin())])
    reversed_ = torch.zeros(m, dtype=torch.int64)
    for bit in range(_log2(m)):
        reversed_ |= (torch.arange(m) >> bit & 1) << (_log2(m) - 1 - bit)
    source = torch.cat([torch.arange(0, n, 2), torch.arange(1, n, 2).flip(0)])
    positions = torch.stack([source[2 * reversed_], source[2 * reversed_ + 1]])
    return tables.to(device, dtype).contiguous(), positions.to(device, torch.int32).contiguous()
