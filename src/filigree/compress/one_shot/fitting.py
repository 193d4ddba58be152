"""One product made sparse: what it should compute, which of its weights stay, and what they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from filigree.compress.one_shot.moments import ProductMoments
from filigree.compress.one_shot.patterns import Pattern
from filigree.compress.one_shot.rounding import by_column, rounded
from filigree.compress.one_shot.surgery import lost, refitted, surgeon

Method = Literal["obs", "wanda", "magnitude"]


LEAST = 0.01  # of the mean variance, added to each where `shrinkage` says how much more


@dataclass(frozen=True)
class How:
    """What is done to every product; the arguments of `OneShot`."""

    method: Method
    pattern: Pattern
    refit: bool
    damping: float | None
    bits: int | None = None


@dataclass
class Fitted:
    """A product's new weights `(groups, rows, columns)`.

    Attributes:
        mask: which stay. shift: of the outputs, for the bias, `(groups * rows,)`, or None.
        counts, scale: the integers, and what one of them is worth in each row, `(groups, rows, parts of columns)`.
        lost, size: the variance of what it computes that is lost, and all of it, summed over rows.
    """

    weight: Tensor
    mask: Tensor
    shift: Tensor | None = None
    counts: Tensor | None = None
    scale: Tensor | None = None
    lost: float = 0.0
    size: float = 0.0


def shrinkage(own: Tensor, count: int) -> Tensor:
    """The share of the mean variance that is to be added to each variance, `(groups,)`: of few rows more.

    `r / (1 - r)`, r what oracle approximating shrinkage mixes into a covariance S of n rows and p columns (Chen et al.
    2010, eq. 23): `((1 - 2/p) tr S^2 + tr^2 S) / ((n + 1 - 2/p) (tr S^2 - tr^2 S / p))`, one half at most.
    """
    p = own.shape[1]
    squares, trace = own.square().sum((1, 2)), own.diagonal(dim1=1, dim2=2).sum(1).square()
    spread = ((count + 1 - 2 / p) * (squares - trace / p)).clamp(min=1e-300)
    mixed = (((1 - 2 / p) * squares + trace) / spread).clamp(0, 0.5)
    return mixed / (1 - mixed)


def by_magnitude(weight: Tensor, keep: float, pattern: Pattern, taps: int) -> Fitted:
    """The largest weights, as they are: what can be done without data."""
    order = _order(weight.shape[2], pattern, taps)
    mask = pattern.largest(weight.abs()[..., order], keep)[..., order.argsort()]
    return Fitted(weight * mask, mask)


def fitted(
    weight: Tensor, moments: ProductMoments, keep: float, how: How, taps: int, scale: Tensor | None = None,
    mask: Tensor | None = None, widths: Sequence[int] = (), by_row: bool = False,
) -> Fitted:  # fmt: skip
    """New weights V of a product, those of the mask only, that change least what it computes on the data.

    With x' what it reads now and x what the original does: first `W' = argmin E|W' x' - W x|^2 + d |W' - W|^2`, d the
    share `damping` of the mean variance (None: 0.01 and `shrinkage`); then V near to W' in
    `tr((V - W') (E[x' x'^T] + d) (V - W')^T)`.

    Args:
        scale: of integers, where it is given; else it is searched. mask: which weights stay, where that is decided.
        widths: of the parts of the columns whose integers have scales of their own; by default there is one.
        by_row: whether the surgeon takes as many weights of each row.
    """
    order = _order(weight.shape[2], how.pattern, taps)
    weight = weight.double().cpu()[..., order]
    own, cross = (part[:, order][:, :, order] for part in (moments.own, moments.cross))
    mean, mean_before = moments.mean[:, order], moments.mean_before[:, order]
    target, damped = refitted_whole(weight, own, cross, moments.count, how.damping)
    target = target if how.refit else weight
    if mask is not None:
        mask = mask[..., order]
    elif keep == 1 and not how.pattern.m:
        mask = torch.ones_like(weight, dtype=torch.bool)
    elif how.method == "obs":
        mask = surgeon(target, damped, keep, how.pattern, by_row)
    elif how.method == "wanda":
        size = (own.diagonal(dim1=1, dim2=2) + mean.square()).sqrt().unsqueeze(1)
        mask = how.pattern.largest(weight.abs() * size, keep, by_row=how.pattern.rows == 1)
    else:
        mask = how.pattern.largest(weight.abs(), keep)
    new = refitted(target, damped, mask) if how.refit else weight * mask
    counts = None
    if how.bits is not None:
        counts, scale = rounded(target, damped, mask, new, how.bits, scale, widths)
        new = counts * by_column(scale, widths, new)
    shift = None
    if how.refit:
        shift = ((weight @ mean_before.unsqueeze(2)) - (new @ mean.unsqueeze(2))).flatten()
    back = order.argsort()
    counts = None if counts is None else counts[..., back]
    parts = float(lost(new - target, own).sum()), float(lost(target, own).sum())
    return Fitted(new[..., back], mask[..., back], shift, counts, scale, *parts)


def refitted_whole(
    weight: Tensor, own: Tensor, cross: Tensor, count: int, damping: float | None
) -> tuple[Tensor, Tensor]:
    """`W' = argmin E|W' x' - W x|^2 + d |W' - W|^2`, and `E[x' x'^T] + d`, d as of `fitted`."""
    share = shrinkage(own, count) + LEAST if damping is None else damping
    ridge = (share * own.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12))[:, None, None]
    damped = own + ridge * torch.eye(own.shape[1], dtype=own.dtype)
    right = (weight @ cross.transpose(1, 2) + ridge * weight).transpose(1, 2)
    return torch.cholesky_solve(right, torch.linalg.cholesky(damped)).transpose(1, 2), damped


def side_by_side(parts: list[Fitted]) -> Fitted:
    """Parts of a product's columns as one."""
    if len(parts) == 1:
        return parts[0]
    shifts = [part.shift for part in parts if part.shift is not None]
    together = Fitted(
        torch.cat([part.weight for part in parts], 2), torch.cat([part.mask for part in parts], 2),
        torch.stack(shifts).sum(0) if shifts else None,
    )  # fmt: skip
    if parts[0].counts is not None:
        together.scale = parts[0].scale
        together.counts = torch.cat([part.counts for part in parts if part.counts is not None], 2)
    together.lost, together.size = sum(part.lost for part in parts), sum(part.size for part in parts)
    return together


def part_of(fit: Fitted, part: int, columns: slice) -> Fitted:
    """One part of the columns of what was fitted, with the scale of its own; error and size are those of the whole."""
    counts = None if fit.counts is None else fit.counts[..., columns]
    scale = None if fit.scale is None else fit.scale[..., part, None]
    return replace(fit, weight=fit.weight[..., columns], mask=fit.mask[..., columns], counts=counts, scale=scale)


def one_below_another(parts: list[Fitted]) -> Fitted:
    """Parts of a matrix's rows as one."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> Any:
        rows = [getattr(part, name) for part in parts]
        return torch.cat(rows, 1) if isinstance(rows[0], Tensor) else None

    lost_of_all, size = sum(part.lost for part in parts), sum(part.size for part in parts)
    names = ("weight", "mask", "counts", "scale")
    return Fitted(**{name: joined(name) for name in names}, lost=lost_of_all, size=size)


def _order(columns: int, pattern: Pattern, taps: int) -> Tensor:
    """The columns so that neighbours are what n:m counts: the channels that are read at one tap of a kernel."""
    numbers = torch.arange(columns)
    return numbers.view(-1, taps).t().flatten() if pattern.m and taps > 1 else numbers
