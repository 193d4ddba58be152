"""What a different order of sums may do to the outputs of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from filigree.computed_weights import copied
from filigree.outputs import tensors_in


def relative_difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference over the largest magnitude, of the tensor where that is most.

    Infinite where shapes differ, or what is not finite.
    """
    worst = 0.0
    for y, z in zip(outputs, expected, strict=True):
        if not _comparable(y, z):
            return float("inf")
        worst = max(worst, _largest(_difference(y, z)) / max(_largest(z), torch.finfo(torch.float32).tiny))
    return worst


def is_rounding(
    outputs: Sequence[Tensor],
    expected: Sequence[Tensor],
    model: nn.Module,
    inputs: Sequence[Tensor],
    share: float,
) -> bool:
    """Whether outputs differ from the expected ones, `model(*inputs)`, as those of another order of sums do.

    They do where no number differs by more than a share of the largest one of its tensor, or by more than the largest
    change that a tenth of that share, added to or taken from each weight at random, makes. Outputs that are small
    differences of large numbers, such as a logit near zero, have a rounding error that is large for their size.
    """
    if relative_difference(outputs, expected) <= share:
        return True
    changed, before = tensors_in(_with_other_weights(model, share / 10)(*inputs)), tensors_in(model(*inputs))
    return all(
        _comparable(y, z)
        and _largest(_difference(y, z)) <= max(share * _largest(z), _largest(_difference(after, as_it_was)))
        for y, z, after, as_it_was in zip(outputs, expected, changed, before, strict=True)
    )


def _comparable(y: Tensor, z: Tensor) -> bool:
    """Of one shape, and what is not finite is the same."""
    return y.shape == z.shape and bool(((y == z) | (y.isfinite() & z.isfinite()) | (y.isnan() & z.isnan())).all())


def _difference(y: Tensor, z: Tensor) -> Tensor:
    return _numbers(y) - _numbers(z)


def _largest(x: Tensor) -> float:
    """The largest magnitude of those numbers that are finite."""
    finite = _numbers(x)[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _numbers(x: Tensor) -> Tensor:
    """Decisions (bool) as 0 and 1."""
    return x.to(torch.int8) if x.dtype == torch.bool else x


def _with_other_weights(model: nn.Module, share: float) -> nn.Module:
    other, generator = copied(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.is_floating_point():
                signs = torch.randint(0, 2, weight.shape, generator=generator).to(weight) * 2 - 1
                weight.mul_(1 + share * signs)
    return other
