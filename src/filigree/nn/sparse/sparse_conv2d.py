"""A 2-D convolution that stores, computes and trains only its connections."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from filigree.nn.drop_in import ConvSettings, dense_conv2d
from filigree.nn.onnx_operators import OperatorConv2d, encoded
from filigree.nn.sparse.sparse_layer import SparseLayer, masked_flat_indices
from filigree.nn.sparse.sparse_onnx import DenseConv2d, GatherConv2d
from filigree.ops import reference
from filigree.ops.c_steps import convolution
from filigree.ops.conv import Geometry, conv2d
from filigree.topology import Size


class SparseConv2d(ConvSettings, SparseLayer):
    r"""`nn.Conv2d` with a truly sparse weight: memory, forward, backward and optimizer cost O(connections x outputs).

    Takes the shape of a convolution from `conv`, an `nn.Conv2d` (any stride, padding, dilation, groups and padding
    mode), and its connections from `flat_indices`; the values are new.

    Args:
        conv: the dense layer to be like.
        flat_indices: sorted connections `out * in_features + in`, `in` counting `(in_channels / groups, kh, kw)`.
        seed: of the initial values.

    Shape: `(N, C, H, W)` or `(C, H, W)`, as `nn.Conv2d`. The output is channel-major in memory (`y.transpose(0, 1)` is
    contiguous): element-wise operations keep that order and the next sparse convolution reads it row by row.

    Parameters and buffers, all in `state_dict`: `values` `(nnz,)` in CSR order of the weight as
    `(out_channels, in_channels / groups * kh * kw)`, `bias`, `indptr`, `indices`. Initial values are drawn from
    N(0, 2 / k) with k the real fan-in of the channel, biases are 0.

    Equivalent to `self.dense()`, an `nn.Conv2d` with zeros where there is no connection.
    """

    def __init__(
        self, conv: nn.Conv2d, flat_indices: Tensor, seed: int = 0, *, device: torch.device | None = None
    ) -> None:
        size = conv_size(conv)
        super().__init__(
            size.out_features, size.in_features, flat_indices, conv.bias is not None,
            torch.Generator().manual_seed(seed), device or conv.weight.device, conv.weight.dtype,
        )  # fmt: skip
        self.take_settings_(conv)
        self._around = tuple(conv._reversed_padding_repeated_twice)
        self._geometry = conv_geometry(conv)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"SparseConv2d: the input must be (N, {self.in_channels}, H, W) or ({self.in_channels}, H, W). "
                f"Got {tuple(x.shape)}."
            )
        if x.dtype != self.values.dtype:
            x = self._cast(x)
        if self.padding_mode != "zeros":
            x = F.pad(x, self._around, mode=self.padding_mode)
        return conv2d(self.values, self.bias, x, *self.pattern[:2], self._geometry)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, default in (("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1), ("padding_mode", "zeros")):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return f"{text}, nnz={self.nnz}, density={self.density:.4g}, bias={self.bias is not None}"

    @torch.no_grad()
    def dense(self) -> nn.Conv2d:
        """The equivalent `nn.Conv2d`."""
        weight = reference.dense(*self.pattern[:2], self.values, self.in_features)
        return dense_conv2d(self, weight, self.bias)

    @classmethod
    @torch.no_grad()
    def from_dense(cls, module: nn.Conv2d, mask: Tensor | None = None) -> Self:
        """The sparse layer with the weights of `module` where `mask` is true (default: where they are not zero)."""
        return cls(module, masked_flat_indices(module.weight, mask))._fill(module)

    def dense_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """The gradient of the dense weight, for growth by gradient: `(out_channels, in_features)`."""
        if self.padding_mode != "zeros":
            x = F.pad(x, self._around, mode=self.padding_mode)
        top, bottom, left, right = self._geometry.padding
        x = F.pad(x, (left, right, top, bottom))
        shape = (self.out_channels, self.in_channels // self.groups, *self._geometry.kernel)
        g = self._geometry
        grad = conv2d_weight(x, shape, dy, g.stride, 0, g.dilation, g.groups)
        return grad.flatten(1)

    def onnx_candidates(self) -> dict[str, nn.Module]:
        return {"dense": DenseConv2d(self), "gather": GatherConv2d(self)}

    def onnx_operator(self) -> nn.Module | None:
        code = encoded(self.weight_matrix())
        return None if code is None else OperatorConv2d(self, self._geometry, code)

    def c_form(self, name: str) -> list[Any]:
        return convolution(self, name, self._c_matrix(), self._geometry)


def conv_size(conv: Any) -> Size:
    """The sides of a convolution's weight as a matrix."""
    kernel = tuple(conv.kernel_size)
    return Size(conv.out_channels, conv.in_channels // conv.groups * kernel[0] * kernel[1], kernel)


def conv_geometry(conv: Any) -> Geometry:
    """The hyperparameters of a convolution; other padding than zeros is put on beforehand."""
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    inner = (top, bottom, left, right) if conv.padding_mode == "zeros" else (0, 0, 0, 0)
    return Geometry(_pair(conv.kernel_size), _pair(conv.stride), inner, _pair(conv.dilation), conv.groups)


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return first, second
