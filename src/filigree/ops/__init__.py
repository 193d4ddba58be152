"""Arithmetic: tensors in, tensors out."""

from filigree.ops._load import kernels
from filigree.ops.pattern import Pattern
from filigree.ops.sparse import linear, sddmm, spmm, spmm_t

__all__ = ["Pattern", "kernels", "linear", "sddmm", "spmm", "spmm_t"]
