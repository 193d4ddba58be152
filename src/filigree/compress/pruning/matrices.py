"""The weight of a linear layer or a convolution as the matrix by which it multiplies what it reads at a position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from filigree.nn.resizing import CONVOLUTIONS, TRANSPOSED

SPATIAL = CONVOLUTIONS + TRANSPOSED


def matrix_of(layer: Any) -> Tensor:
    """`(out_features, in_features of a group x taps)`.

    A transposed convolution reads with its kernel turned round, between whose taps and its inputs there are zeros.
    """
    weight: Tensor = layer.weight.detach()
    if not isinstance(layer, TRANSPOSED):
        return weight.flatten(1)
    taps = tuple(range(3, weight.dim() + 1))
    return weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flip(taps).flatten(3).flatten(0, 1).flatten(1)


def write_matrix_(layer: Any, matrix: Tensor) -> None:
    """Give a layer the weight of which this is the matrix."""
    if isinstance(layer, TRANSPOSED):
        weight, groups = layer.weight, layer.groups
        shape = groups, weight.shape[1], weight.shape[0] // groups, *weight.shape[2:]
        matrix = matrix.view(shape).flip(tuple(range(3, len(shape)))).transpose(1, 2)
    layer.weight.copy_(matrix.reshape(layer.weight.shape))


def taps_of(layer: Any) -> int:
    """How many numbers of a channel it reads at a position."""
    return int(layer.weight[0, 0].numel()) if isinstance(layer, SPATIAL) else 1


def channels_in(layer: Any) -> int:
    """Channels that a convolution reads, those of a group."""
    return int(layer.in_channels // layer.groups)


def bias_of(layer: Any, outputs: int) -> Tensor:
    """The bias in float64, zeros where there is none."""
    return torch.zeros(outputs, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()
