"""Arithmetic: tensors in, tensors out."""

from filigree.ops._load import compiled, kernels
from filigree.ops.linear_cross_entropy import linear_cross_entropy
from filigree.ops.pattern import Pattern
from filigree.ops.sparse import linear, sddmm, spmm, spmm_t

__all__ = ["Pattern", "compiled", "kernels", "linear", "linear_cross_entropy", "sddmm", "spmm", "spmm_t"]
