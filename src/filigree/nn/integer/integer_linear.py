"""A linear layer whose weights are small integers times a scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from filigree.nn.drop_in import dense_linear
from filigree.nn.integer.integer_layer import IntegerLayer
from filigree.nn.integer.integer_onnx import PlainIntegerLinear
from filigree.nn.onnx_operators import OperatorLinear
from filigree.ops.c_steps import linear as c_linear
from filigree.ops.integers import Integers, integer_linear


class IntegerLinear(IntegerLayer):
    """`y = x W^T + b` with `W = scale * C * input_scale`, C small integers, most of them zero: for inference.

    Cost O(nonzeros): the compiled kernel multiplies int8 counts with vectors of the batch. Stored in a byte a sample.

    Args:
        counts: C, `(out_features, in_features)` integers. scale: `(1,)` or `(out_features,)`.
        input_scale: `(in_features,)` or None. bias: `(out_features,)` or None. relu: apply ReLU to the output.

    Shape: `(..., in_features)` to `(..., out_features)`. Dense equivalent: `dense()`, an `nn.Linear`. Gradients reach
    the input and the bias; the integers have none.
    """

    def __init__(
        self, counts: Tensor, scale: Tensor, input_scale: Tensor | None = None, bias: Tensor | None = None,
        relu: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(counts, scale, input_scale, bias)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"IntegerLinear: the input's last side must be in_features={self.in_features}. Got {tuple(x.shape)}."
            )
        flat = x.reshape(-1, self.in_features)
        if self.activation is not None:
            flat = self.activation(flat)
        if self.input_scale is not None:
            flat = flat * self.input_scale
        matrix = Integers(self.indptr, self.indices, self.counts)
        y = integer_linear(matrix, self.in_features, flat, self.scale.expand(self.out_features), self.bias, self.relu)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nnz={self.nnz}, "
            f"bits={self.bits:.3g}, bias={self.bias is not None}" + (", relu=True" if self.relu else "")
        )

    @torch.no_grad()
    def dense(self) -> nn.Module:
        """The equivalent torch module: an `nn.Linear`, followed by `nn.ReLU` where that is fused in."""
        linear = dense_linear(self._dense_weight(), self.bias)
        return nn.Sequential(linear, nn.ReLU()) if self.relu else linear

    def onnx_form(self) -> nn.Module:
        return PlainIntegerLinear(self)

    def onnx_operator(self) -> nn.Module | None:
        code = self._onnx_code()
        return None if code is None else OperatorLinear(self, code, self.scale, self.input_scale)

    def _c_product(self, name: str, matrix: Any, scale: Any) -> list[Any]:
        return c_linear(self, name, matrix, scale)
