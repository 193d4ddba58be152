"""A 2-D convolution whose weights are small integers times a scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.nn.drop_in import ConvSettings, dense_conv2d
from filigree.nn.integer.integer_layer import IntegerLayer, by_channel
from filigree.nn.integer.integer_onnx import PlainIntegerConv2d
from filigree.nn.onnx_operators import OperatorConv2d
from filigree.nn.sparse.sparse_conv2d import conv_geometry
from filigree.ops.c_steps import convolution
from filigree.ops.conv import conv2d


class IntegerConv2d(ConvSettings, IntegerLayer):
    """A convolution with `W = scale * C * input_scale`, C small integers, most of them zero: for inference.

    Stored in a byte a sample; run by the sparse convolution's kernel, whose values are the integers times their scales.

    Args:
        conv: the layer to be like: `nn.Conv2d` or `SparseConv2d`, any hyperparameters.
        counts: C, `(out_channels, in_channels / groups * kh * kw)` integers. scale: `(1,)` or `(out_channels,)`.
        input_scale: `(in_channels,)` or None. bias: `(out_channels,)` or None.

    Shape: as `nn.Conv2d`. Dense equivalent: `dense()`.
    """

    def __init__(
        self, conv: Any, counts: Tensor, scale: Tensor, input_scale: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        super().__init__(counts, scale, input_scale, bias)
        self.take_settings_(conv)
        around = conv._around if hasattr(conv, "_around") else conv._reversed_padding_repeated_twice
        self._around = tuple(around)
        self._geometry = conv._geometry if hasattr(conv, "_geometry") else conv_geometry(conv)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"IntegerConv2d: the input must be (N, {self.in_channels}, H, W). Got {tuple(x.shape)}.")
        if self.activation is not None:
            x = self.activation(x)
        if self.input_scale is not None:
            x = x * self.input_scale.view(-1, 1, 1)
        if self.padding_mode != "zeros":
            x = F.pad(x, self._around, mode=self.padding_mode)
        rows = torch.repeat_interleave(self.indptr.diff().long(), output_size=self.indices.numel())
        values = self.counts.to(x.dtype) * self.scale.expand(self.out_features)[rows].to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return conv2d(values, bias, x, self.indptr, self.indices, self._geometry)

    def _run_form(self, indptr: Tensor, columns: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return indptr, columns, counts

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return f"{text}, padding={self.padding}, nnz={self.nnz}, bits={self.bits:.3g}, bias={self.bias is not None}"

    @torch.no_grad()
    def dense(self) -> nn.Conv2d:
        """The equivalent `nn.Conv2d`."""
        weight = self.integers().to(self.scale) * self.scale[:, None]
        if self.input_scale is not None:
            weight = weight * by_channel(self.input_scale, weight, self.groups)
        return dense_conv2d(self, weight, self.bias)

    def onnx_form(self) -> nn.Module:
        return PlainIntegerConv2d(self)

    def onnx_operator(self) -> nn.Module | None:
        code = self._onnx_code()
        return None if code is None else OperatorConv2d(self, self._geometry, code, self.scale, self.input_scale)

    def _c_product(self, name: str, matrix: Any, scale: Any) -> list[Any]:
        return convolution(self, name, matrix, self._geometry, scale)
