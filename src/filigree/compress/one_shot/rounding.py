"""Weights as integers of a few bits, with zeros where they are: what rounding does to the outputs is made up for.

Begins as GPTQ does (Frantar et al. 2023): column by column, the error of each goes to the columns behind it. Then each
integer is chosen again, given all others, and the scales too, for as long as that lowers the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from filigree.compress.one_shot.surgery import BLOCK, inverse_factor, lost

SWEEPS = 6
CLIPS = tuple(0.4 + 0.05 * k for k in range(13))  # shares of the largest weight that the largest integer may stand for


def rounded(
    weight: Tensor, moments: Tensor, mask: Tensor, start: Tensor, bits: int, scale: Tensor | None = None,
    widths: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Integers C and scales s of each row with a small `tr((s C - W) H (s C - W)^T)`, C zero outside the mask.

    Args:
        weight: W `(groups, rows, columns)`. moments: H. mask: truth values. start: the W with the mask's zeros that is
            to be rounded. bits: of an integer with its sign: `-(2^(bits - 1) - 1)` to `2^(bits - 1) - 1`.
        scale: s, `(groups, rows, 1)`, where it is given; else it is searched. widths: of the parts of the columns that
            have scales of their own, all together by default.

    Returns:
        C, and s `(groups, rows, parts)`.
    """
    most, given = 2 ** (bits - 1) - 1, scale is not None
    parts = parts_of_columns(widths)
    if scale is None:
        sizes = moments.diagonal(dim1=1, dim2=2)
        scale = torch.stack([nearest_scale(start[..., part], sizes[:, part], bits) for part in parts], 2)
    counts = _walk(start, moments, mask, by_column(scale, widths, start), most)
    if not given:
        scale = _best_scale(counts, scale, weight, moments, widths)
    error = lost(counts * by_column(scale, widths, start) - weight, moments)
    for _ in range(SWEEPS):
        again = _descend(counts.clone(), by_column(scale, widths, start), weight, moments, mask, most)
        scaled = scale if given else _best_scale(again, scale, weight, moments, widths)
        now = lost(again * by_column(scaled, widths, start) - weight, moments)
        better = now < error
        if not bool(better.any()):
            break
        counts = torch.where(better[..., None], again, counts)
        scale, error = torch.where(better[..., None], scaled, scale), torch.where(better, now, error)
    return counts, scale


def parts_of_columns(widths: Sequence[int]) -> list[slice]:
    """The columns of each part of so many, one after another; without widths all of them."""
    return [slice(end - width, end) for width, end in zip(widths, accumulate(widths), strict=True)] or [slice(None)]


def by_column(scale: Tensor, widths: Sequence[int], like: Tensor) -> Tensor:
    """The scale of each weight, `(groups, rows, columns)`, of scales of each part `(groups, rows, parts)`."""
    parts = parts_of_columns(widths)
    if len(parts) == 1:
        return scale.expand_as(like)
    return torch.cat([scale[..., k, None].expand_as(like[..., part]) for k, part in enumerate(parts)], 2)


def nearest_scale(start: Tensor, sizes: Tensor, bits: int) -> Tensor:
    """Of each row the scale by which rounding to the nearest costs least, `(groups, rows)`.

    Args:
        start: `(groups, rows, columns)`. sizes: the variances of what the columns read, `(groups, columns)`.
    """
    most, own = 2 ** (bits - 1) - 1, sizes.unsqueeze(1)
    largest = start.abs().amax(2).clamp(min=torch.finfo(torch.float32).tiny) / most
    best, scale = torch.full_like(largest, torch.inf), largest
    for clip in CLIPS:
        tried = largest * clip
        steps = (start / tried[..., None]).round().clamp(-most, most)
        cost = ((start - steps * tried[..., None]).square() * own).sum(2)
        scale, best = torch.where(cost < best, tried, scale), torch.minimum(cost, best)
    return scale


def _walk(start: Tensor, moments: Tensor, mask: Tensor, scale: Tensor, most: int) -> Tensor:
    """Integers, column by column from the one with the largest inputs on, errors passed to the columns behind."""
    counts = torch.empty_like(start)
    for group in range(len(start)):
        order = moments[group].diagonal().argsort(descending=True, stable=True)
        upper = inverse_factor(moments[group][order][:, order].unsqueeze(0))[0]
        w, allowed, steps = start[group][:, order], mask[group][:, order], scale[group][:, order]
        taken = torch.empty_like(w)
        for first in range(0, w.shape[1], BLOCK):
            last = min(first + BLOCK, w.shape[1])
            errors = w.new_empty(len(w), last - first)
            for j in range(first, last):
                taken[:, j] = (w[:, j] / steps[:, j]).round().clamp(-most, most) * allowed[:, j]
                errors[:, j - first] = (w[:, j] - taken[:, j] * steps[:, j]) / upper[j, j]
                w[:, j:last] -= errors[:, j - first, None] * upper[j, j:last]
            w[:, last:] -= errors @ upper[first:last, last:]
        counts[group][:, order] = taken
    return counts


def _best_scale(counts: Tensor, scale: Tensor, weight: Tensor, moments: Tensor, widths: Sequence[int]) -> Tensor:
    """The scales of each row that are best for its integers: least squares of one number, part by part."""
    scale, parts = scale.clone(), parts_of_columns(widths)
    for k, part in enumerate(parts):
        others = weight if len(parts) == 1 else weight - counts * by_column(scale, widths, counts)
        mine = counts[..., part]
        by_moments = mine @ moments[:, part]
        own = (by_moments[..., part] * mine).sum(2)
        best = (by_moments * others).sum(2) / own.clamp(min=1e-300)
        best = best if len(parts) == 1 else best + scale[..., k]
        scale[..., k] = torch.where((own > 0) & (best > 0), best, scale[..., k])
    return scale


def _descend(counts: Tensor, scale: Tensor, weight: Tensor, moments: Tensor, mask: Tensor, most: int) -> Tensor:
    """Each column once more, rounded to what is best given all the others; `scale` of each weight."""
    gradient = (weight - counts * scale) @ moments  # of minus half the error
    own = moments.diagonal(dim1=1, dim2=2)
    columns = counts.shape[2]
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        inner = moments[:, first:last, first:last]
        local, before = gradient[:, :, first:last].clone(), counts[:, :, first:last].clone()
        for j in range(last - first):
            old, step = counts[:, :, first + j], scale[:, :, first + j]
            best = (old + local[:, :, j] / (own[:, first + j, None] * step)).round().clamp(-most, most)
            change = (best * mask[:, :, first + j] - old) * step
            local -= change[..., None] * inner[:, j].unsqueeze(1)
            counts[:, :, first + j] = best * mask[:, :, first + j]
        change = (counts[:, :, first:last] - before) * scale[:, :, first:last]
        gradient -= change @ moments[:, first:last]
    return counts
