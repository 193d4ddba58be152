"""Layers of small integers stand in an ONNX file in plain torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class IntegerWeight(NamedTuple):
    """A weight `scale * integers * input_scale`: integers `(rows, width)`, one scale or one a row, one an input."""

    integers: Tensor
    scale: Tensor
    input_scale: Tensor | None


class PlainSampling(nn.Module):
    """It is a `SampledActivation` on a batch of any size."""

    form = "sampled activations"

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.register_buffer("scale", module.scale)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.get_buffer("scale")
        flat = x.flatten(1)
        at = (flat.abs().double().cumsum(1) / scale + 0.5).floor()
        before = F.pad(at[:, :-1], (1, 0))
        return ((at - before) * flat.sign()).to(x.dtype).reshape(x.shape) * scale


class PlainIntegers(nn.Module):
    """The integers of an `IntegerLayer` stand in the file, in four bits where they fit, else in 8, 16 or 32."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        integers = layer.integers()
        most = int(integers.abs().max()) if integers.numel() else 0
        kind = torch.int8 if most <= 127 else torch.int16 if most <= 32767 else torch.int32
        self.form = "integers of 4 bits" if most <= 7 else f"integers of {kind.itemsize * 8} bits"
        self.input_scale: Tensor | None
        self.register_buffer("integers", integers.to(kind))
        self.register_buffer("scale", layer.scale.reshape(-1, 1))
        self.register_buffer("input_scale", layer.input_scale)
        self.bias: nn.Parameter | None = layer.bias
        self.activation: nn.Module | None = layer.activation

    def decoded(self) -> Tensor:
        scale = self.get_buffer("scale")
        return self.get_buffer("integers").to(scale.dtype) * scale


class PlainIntegerLinear(PlainIntegers):
    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.relu = layer.relu

    def forward(self, x: Tensor) -> Tensor:
        if self.activation is not None:
            x = self.activation(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        y = F.linear(x if self.input_scale is None else x * self.input_scale, self.decoded(), self.bias)
        return y.relu() if self.relu else y


class PlainIntegerConv2d(PlainIntegers):
    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.like: Any = [layer.dense().to("meta")]  # its hyperparameters; in a list, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        if self.activation is not None:
            x = self.activation(x)
        if self.input_scale is not None:
            x = x * self.input_scale.view(-1, 1, 1)
        like = self.like[0]
        return like._conv_forward(x, self.decoded().view(like.weight.shape), self.bias)
