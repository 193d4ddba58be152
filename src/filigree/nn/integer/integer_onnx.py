"""What stands in an ONNX file for each of filigree's modules: a table from types to twins in plain torch.

`exportable(module)` looks a module's type up and gives its twin; a module that is not in the table stands for itself.
A new method adds its twin here. A twin's submodules were looked up before it; it says its `form` for the report.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.nn.unrolled_rnn import PlainGates, UnrolledRNN
from filigree.nn.structured.structured_onnx import (
    PlainAFDF,
    PlainFastfood,
    PlainSell,
    plain_circulant,
    plain_toeplitz,
)
from filigree.nn.asymmetric.asymmetric_conv2d import AsymmetricConv2d
from filigree.nn.asymmetric.asymmetric_linear import AsymmetricLinear
from filigree.nn.asymmetric.asymmetric_rnn import AsymmetricGRU, AsymmetricLSTM
from filigree.nn.integer.integer_conv2d import IntegerConv2d
from filigree.nn.integer.integer_layer import IntegerLayer, SampledActivation
from filigree.nn.integer.integer_linear import IntegerLinear
from filigree.nn.mollified.mollified_block import MollifiedBlock
from filigree.nn.noisy.noisy_activations import NoisyHardSigmoid, NoisyHardTanh
from filigree.nn.noisy.noisy_rnn import NoisyGates
from filigree.nn.rnn import LoopedRNN
from filigree.nn.sparse.channel_major_batch_norm import ChannelMajorBatchNorm2d
from filigree.nn.sparse.channel_major_conv2d import ChannelMajorConv2d
from filigree.nn.sparse.feature_major_linear import FeatureMajorLinear
from filigree.nn.structured.fastfood import FastfoodLinear
from filigree.nn.structured.fourier import AFDFLinear, CirculantLinear, ToeplitzLinear
from filigree.nn.structured.sell import Sell
from filigree.ops.noise import expected_input_noise, noisy_reference


@functools.singledispatch
def exportable(module: nn.Module) -> nn.Module:
    """The twin of a module in eval mode, in operators that ONNX has; the module itself if it needs none."""
    return module


exportable.register(Sell, PlainSell)
exportable.register(AFDFLinear, PlainAFDF)
exportable.register(CirculantLinear, plain_circulant)
exportable.register(ToeplitzLinear, plain_toeplitz)
exportable.register(FastfoodLinear, PlainFastfood)
exportable.register(NoisyGates, PlainGates)
exportable.register(LoopedRNN, UnrolledRNN)


def _plain(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """The torch module that a subclass of it is in eval mode, with the same parameters, shared ones too."""
    made = object.__new__(kind)
    made.__dict__.update(module.__dict__)
    return made


for ours, its in (
    (FeatureMajorLinear, nn.Linear), (ChannelMajorConv2d, nn.Conv2d), (ChannelMajorBatchNorm2d, nn.BatchNorm2d),
    (AsymmetricConv2d, nn.Conv2d),
):  # fmt: skip
    exportable.register(ours, functools.partial(_plain, its))


class _LinearReLU(nn.Sequential):
    form = "Linear, ReLU"


@exportable.register
def _asymmetric_linear(module: AsymmetricLinear) -> nn.Module:
    linear = _plain(nn.Linear, module)
    return _LinearReLU(linear, nn.ReLU()) if module.relu else linear


@exportable.register
def _asymmetric_lstm(module: AsymmetricLSTM) -> nn.Module:
    return UnrolledRNN(module) if module.has_gates else _plain(nn.LSTM, module)


@exportable.register
def _asymmetric_gru(module: AsymmetricGRU) -> nn.Module:
    return UnrolledRNN(module) if module.has_gates else _plain(nn.GRU, module)


class PlainNoise(nn.Module):
    """A noisy activation in eval mode: noise is its mean, or with `exact` the result its expectation."""

    form = "expectation of the noise"

    def __init__(self, module: NoisyHardTanh | NoisyHardSigmoid) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        m = self.module
        at_input = m.kind not in ("NAN", "NAH")
        if m.exact and at_input:
            return expected_input_noise(x, m._spread(x), m.numbers, m._tanh)
        return noisy_reference(x, m._spread(x), 0.0 if at_input else m.mean, m.numbers, m._tanh)


exportable.register(NoisyHardTanh, PlainNoise)
exportable.register(NoisyHardSigmoid, PlainNoise)


class PlainBlock(nn.Module):
    """A `MollifiedBlock` in eval mode."""

    def __init__(self, block: MollifiedBlock) -> None:
        super().__init__()
        self.block = block
        self.form = f"block at p = {self.block.p if self.block.expected else 0:g}"

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        p = block.p if block.expected else 0.0
        y = block.body(x)
        skip = block._skip(x, y.shape) if p or block.residual else None
        if p == 1 and skip is not None:
            return skip
        h: Tensor = block.activation(y + skip if block.residual else y)
        return h if not p or skip is None else p * skip + (1 - p) * h


exportable.register(MollifiedBlock, PlainBlock)


class PlainSampling(nn.Module):
    """A `SampledActivation` on a batch of any size."""

    form = "sampled activations"

    def __init__(self, module: SampledActivation) -> None:
        super().__init__()
        self.register_buffer("scale", module.scale)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.get_buffer("scale")
        flat = x.flatten(1)
        at = (flat.abs().double().cumsum(1) / scale + 0.5).floor()
        before = F.pad(at[:, :-1], (1, 0))
        return ((at - before) * flat.sign()).to(x.dtype).reshape(x.shape) * scale


exportable.register(SampledActivation, PlainSampling)


class PlainIntegers(nn.Module):
    """An `IntegerLayer`: its integers stand in the file, in four bits where they fit, else in 8, 16 or 32."""

    def __init__(self, layer: IntegerLayer) -> None:
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

    def weight(self) -> Tensor:
        scale = self.get_buffer("scale")
        return self.get_buffer("integers").to(scale.dtype) * scale


class PlainIntegerLinear(PlainIntegers):
    def __init__(self, layer: IntegerLinear) -> None:
        super().__init__(layer)
        self.relu = layer.relu

    def forward(self, x: Tensor) -> Tensor:
        if self.activation is not None:
            x = self.activation(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        y = F.linear(x if self.input_scale is None else x * self.input_scale, self.weight(), self.bias)
        return y.relu() if self.relu else y


class PlainIntegerConv2d(PlainIntegers):
    def __init__(self, layer: IntegerConv2d) -> None:
        super().__init__(layer)
        self.like: Any = [layer.dense().to("meta")]  # its hyperparameters; in a list, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        if self.activation is not None:
            x = self.activation(x)
        if self.input_scale is not None:
            x = x * self.input_scale.view(-1, 1, 1)
        like = self.like[0]
        return like._conv_forward(x, self.weight().view(like.weight.shape), self.bias)


exportable.register(IntegerLinear, PlainIntegerLinear)
exportable.register(IntegerConv2d, PlainIntegerConv2d)
