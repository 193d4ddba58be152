"""The sparse products as Triton kernels, for CUDA tensors.

The kernels are in `triton_products.py`, which is loaded when the first of them is called, and Triton with it: that
takes 0.2 s. Where Triton is not installed, `available` is False and `filigree.ops.reference` is used. Triton's
interpreter (`TRITON_INTERPRET=1`) runs the same code on CPU tensors: it is how it is tested without a GPU.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from filigree.ops import reference
from filigree.ops.pattern import Pattern
from filigree.optional import needed

available = importlib.util.find_spec("triton") is not None


@functools.cache
def _kernels() -> Any:
    return needed("filigree.ops.triton_products", "filigree.ops.gpu", "gpu")


class Tile(NamedTuple):
    """The nonzeros and samples that a program takes at a time, and the warps that share them."""

    nonzeros: int
    samples: int
    warps: int


def tile(batch: int) -> Tile:
    """The tile of `spmm` for a batch of at least one sample; that of `sddmm` has twice its nonzeros and warps.

    Each warp then reads 16 bytes a thread of several rows of x at once, and has fewer indices (in `sddmm`: samples)
    than threads, so that all read their own and none goes through shared memory. The tile is not chosen by timing, as
    `triton.autotune` would: the order of a sum, and so its last bits, depend on it.
    """
    if batch == 1:
        return Tile(128, 1, 1)
    samples = min(128, 1 << (batch - 1).bit_length())
    return Tile(min(64, 2048 // samples), samples, 4)


def takes(x: Tensor) -> bool:
    """Whether the kernels read half precision as it is: sums are in float32, results are rounded once."""
    return available and x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)


def spmm(pattern: Pattern, values: Tensor, x: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """`relu(W x + bias)` on a feature-major `x` `(in_features, batch)`."""
    return _csr_times(pattern.indptr, pattern.indices, None, values, x, bias, relu)


def spmm_t(pattern: Pattern, values: Tensor, dy: Tensor) -> Tensor:
    """`W^T dy` on a feature-major `dy` `(out_features, batch)`."""
    return _csr_times(pattern.t_indptr, pattern.t_indices, pattern.t_perm, values, dy, None, False)


def _csr_times(
    indptr: Tensor, indices: Tensor, perm: Tensor | None, values: Tensor, x: Tensor, bias: Tensor | None, relu: bool
) -> Tensor:
    """As `filigree.ops.sparse.csr_times`; half precision is summed in float32."""
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    x = _feature_major(x)
    rows, batch = indptr.numel() - 1, x.shape[1]
    y = x.new_empty(rows, batch)
    if y.numel():
        grid: Any = (rows, -(-batch // tile(batch).samples))
        with torch.cuda.device_of(x):
            _kernels().spmm_kernel[grid](
                values, indptr, indices, indices if perm is None else perm, x, y, values if bias is None else bias,
                batch, x.stride(0), y.stride(0), HAS_PERM=perm is not None, HAS_BIAS=bias is not None, RELU=relu,
                **_options(x, tile(batch)),
            )  # fmt: skip
    return y


def sddmm(pattern: Pattern, dy: Tensor, x: Tensor) -> Tensor:
    """`(dy x^T)` at the nonzeros, of feature-major matrices."""
    dy, x = _feature_major(dy), _feature_major(x)
    if not dy.shape[1]:
        return dy.new_zeros(pattern.nnz)
    out = dy.new_empty(pattern.nnz)
    if out.numel():
        nonzeros, samples, warps = tile(x.shape[1])
        with torch.cuda.device_of(x):
            _kernels().sddmm_kernel[(pattern.rows,)](
                pattern.indptr, pattern.indices, dy, x, out, dy.shape[1], dy.stride(0), x.stride(0),
                **_options(x, Tile(2 * nonzeros, samples, 2 * warps)),
            )  # fmt: skip
    return out


def _feature_major(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _options(x: Tensor, tile: Tile) -> dict[str, Any]:
    """What the kernels are compiled for: whether addresses in x need 64 bits, the type of sums, the tile."""
    tl = _kernels().tl
    return {
        "WIDE": x.shape[0] * x.stride(0) >= 1 << 31, "SUM": tl.float64 if x.dtype is torch.float64 else tl.float32,
        "K": tile.nonzeros, "B": tile.samples, "num_warps": tile.warps,
    }  # fmt: skip


def linear(pattern: Pattern, values: Tensor, bias: Tensor | None, x: Tensor, relu: bool) -> Tensor:
    """`relu(x W^T + bias)` on a batch-major `x` `(batch, in_features)`."""
    return spmm(pattern, values, x.t(), bias, relu).t().data  # no view, as on the CPU


linear_backward = functools.partial(reference.linear_backward, spmm_t=spmm_t, sddmm=sddmm)
