"""Three normal distributions on a line, to be told apart."""

from __future__ import annotations

import torch
from torch import Tensor

from filigree_papers.data.tasks.sizes import at_least

MEANS = (-4.0, 0.0, 5.0)
DEVIATIONS = (0.5, 1.0, 1.5)


def gaussians(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A mixture in equal parts of N(-4, .5^2), N(0, 1) and N(5, 1.5^2), labelled by component.

    Moczulski 2019, Figs. 4.6 and 4.7, says neither dimension, means nor deviations: these are ours, such that the task
    can be solved "almost perfectly" (the best possible accuracy is 98.3%).

    Returns:
        x `(samples, 1)`, float32; y `(samples,)`, int64 in [0, 3).
    """
    at_least(1, "gaussians", samples=samples)
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, len(MEANS), (samples,), generator=generator)
    x = torch.tensor(MEANS)[y] + torch.tensor(DEVIATIONS)[y] * torch.randn(samples, generator=generator)
    return x[:, None], y
