"""What a different order of sums may do to the outputs of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from filigree.outputs import tensors_in


def relative_difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference over the largest magnitude, of the tensor where that is most.

    Infinite where shapes differ, or what is not finite.
    """
    worst = 0.0
    for y, z in zip(outputs, expected, strict=True):
        if not _comparable(y, z):
            return float("inf")
        worst = max(worst, _largest_difference(y, z) / max(_largest(z), torch.finfo(torch.float32).tiny))
    return worst


def is_rounding(
    outputs: Sequence[Tensor],
    expected: Sequence[Tensor],
    copy: Callable[[], nn.Module],
    inputs: Sequence[Tensor],
    share: float,
) -> bool:
    """Whether outputs differ from the expected ones as those of another order of sums do.

    They do where no number differs by more than a share of the largest one of its tensor, or by more than the largest
    change that a tenth of that share, added to or taken from each weight at random, makes. Outputs that are small
    differences of large numbers, such as a logit near zero, have a rounding error that is large for their size.
    Decisions (integers, bool) have none.

    Args:
        copy: makes a copy of the model, which gives `expected` for these inputs, to change its weights. Where there is
            none, or it gives other shapes, the first rule stands alone.
    """
    pairs = list(zip(outputs, expected, strict=True))
    near = [_comparable(y, z) and _largest_difference(y, z) <= share * _largest(z) for y, z in pairs]
    if all(near):
        return True
    try:
        changed = tensors_in(_with_other_weights(copy(), share / 10)(*inputs))
    except Exception:  # whatever a model's own code says of being copied, or of other weights
        return False
    return len(changed) == len(pairs) and all(
        is_near or (_has_numbers(z) and _comparable(y, z) and _comparable(other, z)
                    and _largest_difference(y, z) <= _largest_difference(other, z))
        for is_near, (y, z), other in zip(near, pairs, changed, strict=True)
    )  # fmt: skip


def _has_numbers(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _comparable(y: Tensor, z: Tensor) -> bool:
    """Of one shape, and what is not finite is the same."""
    return y.shape == z.shape and bool(((y == z) | (y.isfinite() & z.isfinite()) | (y.isnan() & z.isnan())).all())


def _largest_difference(y: Tensor, z: Tensor) -> float:
    """Of the numbers that are finite."""
    finite = z.isfinite()
    return _largest(_precise(y)[finite] - _precise(z)[finite])


def _largest(x: Tensor) -> float:
    """The largest magnitude of those numbers that are finite."""
    finite = _precise(x)[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _precise(x: Tensor) -> Tensor:
    """In float64; decisions (bool) as 0 and 1."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


@torch.no_grad()
def _with_other_weights(model: nn.Module, share: float) -> nn.Module:
    """The model, each weight changed by a share of it, or by what its type can hold."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.is_floating_point():
            signs = torch.randint(0, 2, weight.shape, generator=generator).to(weight) * 2 - 1
            weight.mul_(1 + max(share, torch.finfo(weight.dtype).eps) * signs)
    return model
