"""Where the numbers of a tensor lie in memory: as a tensor of positions, on which torch's own views are called."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from filigree.ops.panel_weights import padded

ZERO = -1
"""The position of a number that is zero and lies nowhere."""


@dataclass(frozen=True)
class Layout:
    """A tensor within a span of memory.

    Args:
        span: its number. positions: shaped as the tensor for one sample: where each number lies among the sample's.
        batch_dim: the dimension, of size one, along which samples lie.
        whole: for `(1, channels, ...)` pixel by pixel, with the channels of each beside one another, zeros up to a
            multiple of 16 included: the positions with `halo` pixels of zeros before and after along each further
            dimension.
        merged: the tensor has the samples' dimension and the next one as one, of `samples * n` rows.
    """

    span: int
    positions: Tensor
    batch_dim: int = 0
    whole: Tensor | None = None
    halo: tuple[tuple[int, int], ...] = ()
    merged: bool = False

    @property
    def is_by_pixel(self) -> bool:
        return self.whole is not None

    @property
    def has_halo(self) -> bool:
        return any(map(any, self.halo))

    @property
    def of_tensor(self) -> Tensor:
        """The positions in the shape that the tensor has for one sample."""
        return self.positions.flatten(self.batch_dim, self.batch_dim + 1) if self.merged else self.positions

    def dim_of(self, dim: int) -> int:
        """Among those of the positions, which dimension one of the tensor is."""
        dim %= self.of_tensor.dim()
        return dim + (self.merged and dim > self.batch_dim)

    def viewed(self, positions: Tensor, batch_dim: int) -> Layout:
        return replace(self, positions=positions, batch_dim=batch_dim, whole=None, halo=())

    def with_zeros(self, around: Sequence[tuple[int, int]]) -> Tensor:
        """The positions with zeros around the further dimensions: those in memory where there are as many."""
        if not any(itertools.chain(*around)):
            return self.positions
        if self.whole is not None and all(
            need[0] <= have[0] and need[1] <= have[1] for need, have in zip(around, self.halo, strict=True)
        ):
            cut = [slice(None), slice(None)]
            for (low, high), (have_low, have_high), size in zip(around, self.halo, self.whole.shape[2:], strict=True):
                cut.append(slice(have_low - low, size - have_high + high))
            return self.whole[tuple(cut)]
        return torch.nn.functional.pad(self.positions, list(itertools.chain(*reversed(around))), value=ZERO)


def by_pixel(span: int, channels: int, sizes: Sequence[int], halo: Sequence[tuple[int, int]], width: int = 0) -> Layout:
    """A new layout `(1, channels, *sizes)` in memory pixel by pixel; `width`: numbers of a pixel, by default padded."""
    width = width or padded(channels)
    full = [size + low + high for size, (low, high) in zip(sizes, halo, strict=True)]
    pixels = torch.arange(_product(full)).view(1, 1, *full) * width
    whole = pixels + torch.arange(channels).view(1, -1, *[1] * len(full))
    inner = tuple(slice(low, low + size) for size, (low, _) in zip(sizes, halo, strict=True))
    is_padded = width == padded(channels)
    layout = Layout(span, whole[(slice(None), slice(None), *inner)], 0, whole, tuple(halo))
    return layout if is_padded else replace(layout, whole=None, halo=())


def numbers_by_pixel(channels: int, sizes: Sequence[int], halo: Sequence[tuple[int, int]], width: int = 0) -> int:
    """How many numbers such a layout takes."""
    full = [size + low + high for size, (low, high) in zip(sizes, halo, strict=True)]
    return _product(full) * (width or padded(channels))


def sums_of(positions: Tensor) -> tuple[Tensor, Tensor] | None:
    """Positions `(inputs, pixels)` as sums of one of the pixel and one of the input; None where they are none."""
    if positions.numel() == 0 or int(positions.min()) < 0:
        return None
    first, inputs = positions[0], positions[:, 0] - positions[0, 0]
    return (first, inputs) if torch.equal(first + inputs[:, None], positions) else None


def is_affine(positions: Tensor) -> bool:
    """Whether the positions are a first one plus a stride for each dimension."""
    if positions.numel() == 0 or int(positions.min()) < 0:
        return False
    index = [0] * positions.dim()
    origin = int(positions[tuple(index)])
    affine: Any = torch.tensor(origin)
    for d, size in enumerate(positions.shape):
        at = list(index)
        at[d] = min(1, size - 1)
        stride = int(positions[tuple(at)]) - origin
        affine = affine + (torch.arange(size) * stride).view(-1, *[1] * (positions.dim() - d - 1))
    return torch.equal(affine, positions)


def _product(sizes: Sequence[int]) -> int:
    out = 1
    for size in sizes:
        out *= size
    return out
