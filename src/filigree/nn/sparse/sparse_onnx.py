"""A sparse layer can stand in an ONNX file in these forms, in plain torch; export measures which runs fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Weight(nn.Module):
    """A weight `(out_features, in_features)` is in the file as its connections and their flat indices, 8 bytes each.

    They are put into zeros, which ONNX Runtime does once, when it loads the file. Where more than half of all weights
    are connections the weight itself is smaller.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.sides = layer.out_features, layer.in_features
        size = layer.out_features * layer.in_features
        flat_indices = layer.flat_indices().to(torch.int32 if size < 2**31 else torch.int64)
        self.scattered = 2 * layer.nnz < size
        values = layer.values.detach()
        if not self.scattered:
            values = values.new_zeros(size).scatter(0, flat_indices.long(), values).view(self.sides)
        self.register_buffer("values", values)
        self.register_buffer("flat_indices", flat_indices if self.scattered else None)

    def forward(self) -> Tensor:
        values = self.get_buffer("values")
        if not self.scattered:
            return values
        zeros = values.new_zeros(self.sides[0] * self.sides[1])
        return zeros.scatter(0, self.get_buffer("flat_indices").long(), values).view(self.sides)


class DenseLinear(nn.Module):
    """It multiplies with the whole weight."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.scattered, self.bias, self.relu = _Weight(layer), layer.bias, layer.relu

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.scattered(), self.bias)
        return y.relu() if self.relu else y


class GatherLinear(nn.Module):
    """It gathers the inputs of each unit and sums them times their weights: `y_o = sum_k w_ok x_c(o, k)`.

    Units with fewer connections than the largest fan-in have zeros behind theirs.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        columns, values = _table(layer, 0)
        self.register_buffer("columns", columns)
        self.register_buffer("values", values)
        self.bias, self.relu, self.fan_in = layer.bias, layer.relu, values.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        y = self.sums(x)
        y = y if self.bias is None else y + self.bias
        return y.relu() if self.relu else y

    def sums(self, x: Tensor) -> Tensor:
        inputs = x.index_select(-1, self.get_buffer("columns")).unflatten(-1, (-1, self.fan_in))
        return (inputs * self.get_buffer("values")).sum(-1)


class GatherLinearByFeature(GatherLinear):
    """It does the same with a feature of the whole batch as one row, which pays for larger batches."""

    def sums(self, x: Tensor) -> Tensor:
        values = self.get_buffer("values")
        rows = x.reshape(-1, x.shape[-1]).t().index_select(0, self.get_buffer("columns"))
        y = values.unsqueeze(1) @ rows.unflatten(0, (-1, self.fan_in))  # (out, 1, fan_in) (out, fan_in, batch)
        return y.squeeze(1).t().reshape(*x.shape[:-1], values.shape[0])


class DenseConv2d(nn.Module):
    """It convolves with the whole weight."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.scattered, self.bias = _Weight(layer), layer.bias
        self.like: Any = [layer.dense().to("meta")]  # its hyperparameters; in a list, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        like = self.like[0]
        return like._conv_forward(x, self.scattered().view(like.weight.shape), self.bias)


class GatherConv2d(nn.Module):
    """It is `GatherLinear` at each position, on the patches that it reads."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.around, self.geometry, self.bias = layer._around, layer._geometry, layer.bias
        self.mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        columns, values = _table(layer, layer.out_channels // layer.groups)
        self.register_buffer("columns", columns)
        self.register_buffer("values", values[:, :, None])

    def forward(self, x: Tensor) -> Tensor:
        g, values = self.geometry, self.get_buffer("values")
        x = F.pad(x, self.around, mode=self.mode)
        sides = [
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(x.shape[2:], g.kernel, g.stride, g.dilation, strict=True)
        ]
        patches = F.unfold(x, g.kernel, dilation=g.dilation, stride=g.stride)  # (batch, channels taps, positions)
        inputs = patches.index_select(1, self.get_buffer("columns")).unflatten(1, values.shape[:2])
        y = (inputs * values).sum(2)
        y = y if self.bias is None else y + self.bias[:, None]
        return y.unflatten(2, sides)


def _table(layer: Any, group: int) -> tuple[Tensor, Tensor]:
    """List for each output the inputs it is connected to, flat, and the weights `(out, fan_in)`, padded with zeros.

    Args:
        group: outputs that read the same inputs, of a convolution; 0: all do.
    """
    counts = layer.indptr.diff().long()
    row = torch.repeat_interleave(counts)
    slot = torch.arange(layer.nnz) - layer.indptr[:-1].long()[row]
    column = layer.indices.int()
    if group:
        column = column + (row // group * layer.in_features).int()
    fan_in = max(1, int(counts.max()) if counts.numel() else 0)
    columns = torch.zeros(layer.out_features, fan_in, dtype=torch.int32).index_put((row, slot), column)
    values = layer.values.detach()
    return columns.flatten(), values.new_zeros(layer.out_features, fan_in).index_put((row, slot), values)
