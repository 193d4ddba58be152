"""Rounding to bytes, in plain torch: what the products of bytes in `kernels/byte_products.h` compute."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Int8Inputs(NamedTuple):
    """`x = scale * (integers - zero)`, with integers of 0 to 255, and a scale and a zero for each first index."""

    integers: Tensor
    scale: Tensor
    zero: Tensor

    def dequantised(self) -> Tensor:
        shape = (-1, *[1] * (self.integers.dim() - 1))
        return (self.integers - self.zero.view(shape)) * self.scale.view(shape)


def int8_inputs(x: Tensor) -> Int8Inputs:
    """Round each of `x[0], x[1], ...` to bytes of their own scale `(most - least) / 255`, where 0 is among both.

    What holds a number that is not finite has the scale NaN; of numbers too small for a scale all are zero.
    """
    rows = x.flatten(1)
    high, low = (torch.cat([rows, rows.new_zeros(len(rows), 1)], 1).nan_to_num(0).aminmax(dim=1))[::-1]
    spread = high - low
    inverse = torch.full_like(spread, 255) / spread  # `255 / spread` would be rounded twice
    bad = ~spread.isfinite() | ~rows.isfinite().all(1)
    scale = torch.where(inverse.isfinite(), spread / 255, 0.0).masked_fill(bad, float("nan"))
    inverse = torch.where(inverse.isfinite() & ~bad, inverse, 0.0)
    zero = (-low * inverse).nan_to_num(0).round().int()
    integers = (rows.nan_to_num(0) * inverse[:, None]).round().int() + zero[:, None]
    return Int8Inputs(integers.clamp(0, 255).view(x.shape), scale, zero)


def int8_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round the rows of a weight `(outputs, inputs)` to integers of -127 to 127: these and the scale of each."""
    most = weight.abs().amax(1) if weight.shape[1] else weight.new_zeros(len(weight))
    scale = most / 127
    integers = (weight / torch.where(scale > 0, scale, 1.0)[:, None]).round().clamp(-127, 127)
    return integers.to(torch.int8), scale


def int8_product(x: Tensor, integers: Tensor) -> Tensor:
    """`x (vectors, inputs) @ W^T` with inputs rounded to bytes and whole numbers as weights, before their scale."""
    rounded = int8_inputs(x)
    sums = (rounded.integers.double() @ integers.double().t()).long()
    total = integers.sum(1, dtype=torch.int64)
    exact = sums - rounded.zero[:, None].long() * total
    return exact.float() * rounded.scale[:, None]
