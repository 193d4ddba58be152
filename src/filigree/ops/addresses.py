"""Tensors as the compiled kernels take them: tuples of addresses and strides, each a struct of `kernels/kernels.h`.

An address is valid while its tensor lives; 0 stands for None.
"""

from __future__ import annotations

from torch import Tensor, bfloat16, float16, float32, float64, int64

from filigree.ops.pattern import Pattern

NO_MATRIX = (0, 0)
NUMBERS = {float32: 0, float64: 1, bfloat16: 2, float16: 3}
"""The kernels' `Number` of a type."""


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def matrix(x: Tensor | None) -> tuple[int, int]:
    """A `Matrix`: `(rows, columns)`, rows contiguous."""
    return NO_MATRIX if x is None else (x.data_ptr(), x.stride(0))


def strided(x: Tensor | None) -> tuple[int, int, int]:
    """A `Strided`: `(samples, features)` in any memory order."""
    return (0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(1))


def compressed_rows(indptr: Tensor, indices: Tensor, perm: Tensor | None = None) -> tuple[bool, int, int, int, int]:
    """A `Pattern` of the kernels."""
    wide, rows = indptr.dtype is int64, indptr.shape[0] - 1
    return wide, rows, indptr.data_ptr(), indices.data_ptr(), 0 if perm is None else perm.data_ptr()


def index(pattern: Pattern) -> tuple[tuple[bool, int, int, int, int], tuple[bool, int, int, int, int], int]:
    """An `Index`: both orders of a pattern."""
    indptr, indices, t_indptr, t_indices, t_perm, t_place = pattern
    return compressed_rows(indptr, indices), compressed_rows(t_indptr, t_indices, t_perm), t_place.data_ptr()
