"""Layers as nodes of filigree's own operators for ONNX Runtime, whose weights take the bytes of what is not zero.

`filigree/export/onnx/operators.cpp.in` is their source; it says how a weight's code is read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.ops.conv import Geometry

DOMAIN = "filigree"
_WIDEST = 16  # bits of an integer


class Code(NamedTuple):
    """A matrix as bytes: where its nonzeros are, then what they are; `attributes` say how they are read."""

    bytes: Tensor
    attributes: dict[str, int]


def encoded(matrix: Tensor) -> Code | None:
    """Encode a matrix `(rows, width)`, float32 or integers; None: of float64, or of integers of more than 16 bits.

    Positions are a bit a weight, or a byte for each nonzero with the zeros before it; the smaller is taken. Values are
    floats, integers in as few bits as they fit into, or signs where all are 1 and -1.
    """
    rows, width = matrix.shape
    if matrix.dtype is torch.float64:
        return None
    flat = matrix.detach().cpu().flatten().numpy()
    at = flat.nonzero()[0]
    values, bits = flat[at], 32
    if not matrix.is_floating_point():
        most = int(np.abs(values).max(initial=1))
        bits = 1 if most == 1 else most.bit_length() + 1
        if bits > _WIDEST:
            return None
    zeros = np.diff(at, prepend=-1) - 1
    ends = np.cumsum(zeros // 255 + 1)
    has_gaps = bool(int(ends[-1]) < -(-flat.size // 8)) if len(at) else True
    if has_gaps:
        positions = np.full(int(ends[-1]) if len(at) else 0, 255, np.uint8)
        positions[ends - 1] = zeros % 255
    else:
        positions = np.packbits(flat != 0, bitorder="little")
    if bits == 32:
        stored = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
    else:
        raised = (values < 0) if bits == 1 else values.astype(np.int64) + (1 << (bits - 1))
        digits = (raised[:, None].astype(np.int64) >> np.arange(bits)).astype(np.uint8) & 1
        stored = np.packbits(digits, bitorder="little")
    attributes = {"rows": rows, "width": width, "nonzeros": len(at), "bits": bits, "gaps": int(has_gaps)}
    return Code(torch.from_numpy(np.concatenate([positions, stored])), attributes)


class _Operator(nn.Module):
    """A node of one of the operators: its input, the code, scales of rows and of inputs, the bias."""

    name: str
    form = "operator"

    def __init__(self, code: Code, bias: Tensor | None, scale: Tensor | None, input_scale: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("encoded", code.bytes)
        for name, numbers in (("scale", scale), ("input_scale", input_scale), ("bias", bias)):
            self.register_buffer(name, torch.empty(0) if numbers is None else numbers.detach().cpu().flatten())
        self.attributes: dict[str, Any] = dict(code.attributes)

    def node(self, x: Tensor, sides: list[Any]) -> Tensor:
        inputs = [x, *(self.get_buffer(name) for name in ("encoded", "scale", "input_scale", "bias"))]
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.name}", inputs, self.attributes, dtype=torch.float32, shape=sides, version=1
        )


class OperatorLinear(_Operator):
    """`SparseLinear`: `y = scale (W input_scale) x + bias`, and ReLU."""

    name = "SparseLinear"

    def __init__(self, layer: Any, code: Code, scale: Tensor | None = None, input_scale: Tensor | None = None) -> None:
        super().__init__(code, layer.bias, scale, input_scale)
        self.attributes["relu"] = int(getattr(layer, "relu", False))

    def forward(self, x: Tensor) -> Tensor:
        return self.node(x, [*x.shape[:-1], self.attributes["rows"]])


class OperatorConv2d(_Operator):
    """`SparseConv`: a convolution of `(N, channels, height, width)`; other padding than zeros is put on before."""

    name = "SparseConv"

    def __init__(
        self, layer: Any, geometry: Geometry, code: Code, scale: Tensor | None = None, input_scale: Tensor | None = None
    ) -> None:
        in_weight = input_scale is not None and geometry.groups == 1  # groups read other channels by the same columns
        super().__init__(code, layer.bias, scale, input_scale if in_weight else None)
        self.before: Tensor | None
        self.register_buffer("before", None if in_weight else input_scale)
        self.attributes |= {
            "channels": layer.in_channels, "kernel": list(geometry.kernel), "stride": list(geometry.stride),
            "dilation": list(geometry.dilation), "padding": list(geometry.padding), "groups": geometry.groups,
            "relu": 0,
        }  # fmt: skip
        self.geometry, self.mode = geometry, layer.padding_mode
        self.around = tuple(layer._around) if hasattr(layer, "_around") else layer._reversed_padding_repeated_twice

    def forward(self, x: Tensor) -> Tensor:
        g = self.geometry
        if self.before is not None:
            x = x * self.before.view(-1, 1, 1)
        if self.mode != "zeros":
            x = F.pad(x, self.around, mode=self.mode)
        around = g.padding[0] + g.padding[1], g.padding[2] + g.padding[3]
        sides = [
            (size + p - d * (k - 1) - 1) // s + 1
            for size, p, k, s, d in zip(x.shape[2:], around, g.kernel, g.stride, g.dilation, strict=True)
        ]
        return self.node(x, [x.shape[0], self.attributes["rows"], *sides])


class OperatorConv1d(nn.Module):
    """`SparseConv` of `(N, channels, length)`: a height of 1 is put in before, and taken out after."""

    form = OperatorConv2d.form

    def __init__(self, flat: OperatorConv2d) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(x.unsqueeze(2)).squeeze(2)
