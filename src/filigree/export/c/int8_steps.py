"""The steps of a network of 8-bit integers, each with what it computes in torch, bit for bit as the C program does.

A number v is stored as q = round(v / scale) + zero, -128 <= q <= 127; what does not fit saturates. A product is summed
in 32 bits and multiplied by m / 2^s, m of 31 bits, in 64 bits, with halves rounded up: no floats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from filigree.export.c.kept import Add, Kept
from filigree.ops.conv import Geometry

LOWEST, HIGHEST = -128, 127


@dataclass(frozen=True)
class Scale:
    """It says which number an integer stands for: `scale (q - zero)`."""

    scale: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> Scale:
        """Choose the scale for numbers from `low` to `high`; 0 is among them and is stored without error."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / (HIGHEST - LOWEST) or 1.0
        return cls(scale, min(HIGHEST, max(LOWEST, round(LOWEST - low / scale))))

    def stored(self, v: Tensor) -> Tensor:
        """Return the integers, int64."""
        return (torch.round(v.double() / self.scale) + self.zero).clamp(LOWEST, HIGHEST).long()

    def numbers(self, q: Tensor) -> Tensor:
        return (q - self.zero).double() * self.scale


def multiplier(factor: float) -> tuple[int, int]:
    """Return m and s with factor = m / 2^s, m below 2^31 and as large as can be, 1 <= s <= 62."""
    mantissa, exponent = math.frexp(factor)  # 0.5 <= mantissa < 1
    m, s = round(mantissa * 2**31), 31 - exponent
    if m == 2**31:
        m, s = 2**30, s - 1
    if s > 62:
        m, s = m >> min(s - 62, 31), 62
    if s < 1:
        raise ValueError(f"export: a scale of {factor:.3g} cannot be written in 8-bit integers.")
    return m, s


def rescaled(sums: Tensor, m: Tensor, s: Tensor) -> Tensor:
    """Return round(sums m / 2^s), int64, halves up."""
    return rounded(sums * m, s)


def rounded(v: Tensor, s: Tensor | int) -> Tensor:
    """Return round(v / 2^s), int64, halves up: `(v + 2^(s - 1)) >> s`."""
    s = torch.as_tensor(s)
    return (v + (torch.ones_like(s) << (s - 1))) >> s


@dataclass(frozen=True)
class Table:
    """`y = table[q + 128]`: any function of one number."""

    name: str
    what: str
    table: np.ndarray

    def simulated(self, q: Tensor) -> Tensor:
        return torch.from_numpy(self.table.astype(np.int64))[q + 128]


@dataclass(frozen=True)
class Slopes:
    """`y = q` at and above zero, below it `(q - zero) m / 2^s`, a slope a channel: written with the scale `after`."""

    name: str
    m: np.ndarray  # (2, channels): of numbers below 0, and of the others
    s: np.ndarray
    signs: np.ndarray  # of the slopes below 0
    before: Scale
    after: Scale

    def simulated(self, q: Tensor) -> Tensor:
        sides = (-1, *[1] * (q.dim() - 2))
        m, s, signs = (torch.from_numpy(a.astype(np.int64)) for a in (self.m, self.s, self.signs))
        v = q - self.before.zero
        below = rescaled(v * signs.view(sides), m[0].view(sides), s[0].view(sides))
        above = rescaled(v, m[1].view(sides), s[1].view(sides))
        return (torch.where(v < 0, below, above) + self.after.zero).clamp(LOWEST, HIGHEST)


@dataclass(frozen=True)
class Pooling:
    """The largest of each window, or the mean of its numbers, rounded, halves up."""

    name: str
    module: Any
    take: str  # max, average or padded average
    geometry: Geometry
    zero: int

    def simulated(self, q: Tensor) -> Tensor:
        v = (q - self.zero).double()
        if self.take == "max":
            return self.module(v).long() + self.zero
        means, ones = self.module(v), torch.ones_like(v[:1, :1])
        inside = self.module(ones)  # as a share of what the window's mean is over
        if self.take == "average":
            count = _sums(ones, self.geometry, means.shape)
        else:
            count = torch.round(_sums(ones, self.geometry, means.shape) / inside)
        sums = _sums(v, self.geometry, means.shape).long()
        return torch.div(2 * sums + count.long(), 2 * count.long(), rounding_mode="floor") + self.zero


def _sums(v: Tensor, g: Geometry, shape: torch.Size) -> Tensor:
    """Sum over windows; what lies outside is 0."""
    height, width = shape[-2:]
    down = (height - 1) * g.stride[0] + g.kernel[0] - v.shape[-2] - g.padding[0]
    right = (width - 1) * g.stride[1] + g.kernel[1] - v.shape[-1] - g.padding[2]
    x = F.pad(v, (g.padding[2], max(0, right), g.padding[0], max(0, down)))
    flat = x.reshape(-1, 1, *x.shape[-2:])
    sums = F.conv2d(flat, torch.ones(1, 1, *g.kernel, dtype=v.dtype), stride=g.stride)[..., :height, :width]
    return sums.reshape(*v.shape[:2], height, width)


@dataclass(frozen=True)
class IntegerSoftmax:
    """Softmax over each run of `sizes` numbers, by a table of exp(-d scale) 65535, d = 0 to 255.

    y = probability 256 - 128.
    """

    name: str
    table: np.ndarray
    sizes: tuple[int, ...]

    def simulated(self, q: Tensor) -> Tensor:
        return torch.cat([self._of_run(part) for part in q.split(self.sizes, -1)], -1)

    def _of_run(self, q: Tensor) -> Tensor:
        e = torch.from_numpy(self.table.astype(np.int64))[q.amax(-1, keepdim=True) - q]
        sums = e.sum(-1, keepdim=True)
        return (torch.div(e * 256 + sums // 2, sums, rounding_mode="floor") - 128).clamp(max=HIGHEST)


class Sum(Add):
    """`y = (a (x - zero of x) + b (kept - zero of kept)) / 2^s + zero`, rounded, halves up.

    a and b have 21 bits, so that all of it fits into 32. `before` are the scales of x and of what was kept.
    """

    def __init__(self, name: str, kept: Kept, before: tuple[Scale, Scale], after: Scale) -> None:
        super().__init__(name, kept)
        ratios = [scale.scale / after.scale for scale in before]
        self.s = min(30, max(1, 21 - math.frexp(max(ratios))[1]))
        self.a, self.b = (min(2**21, round(ratio * 2**self.s)) for ratio in ratios)
        self.offset = (1 << (self.s - 1)) - self.a * before[0].zero - self.b * before[1].zero
        self.after = after

    def simulated(self, x: Tensor, kept: Tensor) -> Tensor:
        return (((self.a * x + self.b * kept + self.offset) >> self.s) + self.after.zero).clamp(LOWEST, HIGHEST)


@dataclass(frozen=True)
class Flat:
    """The same integers in another shape, or those at the last moment."""

    name: str
    module: Any

    def simulated(self, q: Tensor) -> Tensor:
        shaped: Tensor = self.module(q)
        return shaped
