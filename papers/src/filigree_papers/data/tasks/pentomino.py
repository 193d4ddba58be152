"""Pentomino: are three small shapes in an image the same?"""

from __future__ import annotations

import torch
from torch import Tensor

from filigree_papers.data.tasks.sizes import at_least

# rows of F, L, N, P and Y; their mirror images are shapes of their own
DRAWINGS = ((" xx", "xx ", " x "), ("x ", "x ", "x ", "xx"), (" x", " x", "xx", "x "), ("xx", "xx", "x "),
            (" x", "xx", " x", " x"))  # fmt: skip


def pentomino(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images with three shapes, labelled by whether all three are the same.

    The task is that of Gulcehre and Bengio 2013 (Moczulski 2019, 4.4.4.1). As the authors' public generator has it: ten
    shapes, F, L, N, P and Y and their mirror images, none of which turns into another; each is turned by a multiple of
    90 degrees, drawn in 1 x 1 or 2 x 2 pixels a cell, and lies in the upper left corner of one of the 8 x 8 patches of
    8 x 8 pixels, another for each. One shape differs where the label is 0. Half of the samples (rounded up) are
    labelled 0.

    Returns:
        x `(samples, 1, 64, 64)`, float32 of 0 and 1 (16 kB a sample); y `(samples,)`, int64.
    """
    at_least(1, "pentomino", samples=samples)
    generator = torch.Generator().manual_seed(seed)
    y = torch.randperm(samples, generator=generator) % 2
    shape = torch.randint(0, 10, (samples, 1), generator=generator)
    other = (shape[:, 0] + torch.randint(1, 10, (samples,), generator=generator)) % 10
    shapes = shape.repeat(1, 3)
    shapes[:, 2] = torch.where(y == 1, shapes[:, 2], other)
    looks = torch.randint(0, 8, (samples, 3), generator=generator)  # turn and scale
    patch = torch.rand(samples, 64, generator=generator).topk(3).indices
    x = torch.zeros(samples, 1, 64, 64)
    grid = x.view(samples, 8, 8, 8, 8)  # patch row, pixel row, patch column, pixel column
    grid[torch.arange(samples)[:, None], patch // 8, :, patch % 8] = _pictures()[shapes, looks]
    return x, y


def _pictures() -> Tensor:
    """Each shape in each look, `(10, 8, 8, 8)`."""
    pictures = torch.zeros(10, 8, 8, 8)
    for number, drawing in enumerate(DRAWINGS):
        cells = torch.tensor([[float(mark == "x") for mark in row] for row in drawing])
        for mirrored in range(2):
            for turns in range(4):
                for scale in (1, 2):
                    turned = torch.rot90(cells.flip(1) if mirrored else cells, turns)
                    look = turned.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
                    pictures[2 * number + mirrored, 2 * turns + scale - 1, : look.shape[0], : look.shape[1]] = look
    return pictures
