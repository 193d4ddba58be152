"""A dense layer among sparse ones: the same arithmetic, in their memory order."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from filigree.nn.drop_in import DropIn
from filigree.ops import sparse
from filigree.ops.c_steps import trained_linear
from filigree.ops.pattern import Pattern
from filigree.ops.transforms import transforming
from filigree.topology.flat_indices import pattern_from_flat_indices

_NARROW = 32  # outputs up to which the sparse kernels, with every place connected, are faster than a dense product


class FeatureMajorLinear(DropIn, nn.Linear):
    """`nn.Linear` that computes `(W x^T + b)^T` where its input is a transposed view of a feature-major matrix.

    Torch's own product copies or strides through such an input: 240 against 40 microseconds for 1000 -> 10 at batch 128
    on the machine where this was found, and as much again in the backward pass. Narrow layers, as most output layers
    are, run on the sparse kernels. Shares parameters, shapes and `state_dict` with `nn.Linear`, which is its dense
    equivalent; other inputs take torch's path.
    """

    has_integer_form = True

    def forward(self, x: Tensor) -> Tensor:
        if x.layout is not torch.strided or x.dim() != 2 or x.stride(0) != 1 or x.shape[0] < 2:
            return super().forward(x)
        if x.dtype != self.weight.dtype or transforming():
            return super().forward(x)
        if self.is_narrow() and x.is_cpu and not torch.compiler.is_compiling():
            return sparse.linear(self.full_pattern(), self.weight.view(-1), self.bias, x)
        rows = x.t()
        if self.bias is None:
            return (self.weight @ rows).t()
        return torch.addmm(self.bias.unsqueeze(1), self.weight, rows).t()

    def is_narrow(self) -> bool:
        """Whether the sparse kernels are the faster ones for it."""
        return self.out_features <= _NARROW

    def full_pattern(self) -> Pattern:
        return full_pattern(self.out_features, self.in_features)

    def c_training_form(self, name: str) -> list[Any]:
        return [trained_linear(self, name)]


@functools.lru_cache(maxsize=16)
def full_pattern(rows: int, cols: int) -> Pattern:
    """Every place of a matrix."""
    with torch.inference_mode(False):  # it is kept, and training will read it too
        return pattern_from_flat_indices(torch.arange(rows * cols), rows, cols)
