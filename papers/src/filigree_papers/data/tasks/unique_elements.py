"""How many different values a sequence of integers has."""

from __future__ import annotations

import torch
from torch import Tensor

from filigree_papers.data.tasks.sizes import at_least


def unique_elements(samples: int, length: int = 26, values: int = 11, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Uniform integers and the number of different ones among them.

    Moczulski 2019, 4.3.6.6, takes 26 integers between 0 and 10. A curriculum calls it with growing `length`. By default
    the most frequent answer, 10, is right for 44%.

    Returns:
        x `(samples, length)`, int64 in [0, values); y `(samples,)`, int64 from 1, so `values + 1` classes.
    """
    at_least(1, "unique_elements", samples=samples, length=length, values=values)
    x = torch.randint(0, values, (samples, length), generator=torch.Generator().manual_seed(seed))
    return x, torch.zeros(samples, values, dtype=torch.int64).scatter_(1, x, 1).sum(1)
