"""Parity of many bits: no subset of them tells anything."""

from __future__ import annotations

import torch
from torch import Tensor

from filigree_papers.data.tasks.sizes import at_least


def parity(samples: int, bits: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random bits and the parity of the ones (Moczulski 2019, 4.4.4.1 has 40).

    Returns:
        x `(samples, bits)`, float32 of -1 and 1; y `(samples,)`, int64: 1 where an odd number of bits is 1.
    """
    at_least(1, "parity", samples=samples, bits=bits)
    ones = torch.randint(0, 2, (samples, bits), generator=torch.Generator().manual_seed(seed))
    return 2.0 * ones - 1, ones.sum(1) % 2
