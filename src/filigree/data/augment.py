"""Augmentation of images: small rotations, shifts and horizontal flips, a batch at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class Augment:
    """`augment(x, generator)`: each image rotated, shifted and flipped at random (the base code's choice for SET).

    Args:
        shape: of an image, `(channels, height, width)`; batches may be flat.
        background: the value that fills the borders (of standardised data: the value of black).
        rotation: largest angle in degrees. shift: largest share of the side. flip: flip half of the images at random.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        background: float = 0.0,
        rotation: float = 10.0,
        shift: float = 0.1,
        flip: bool = True,
    ) -> None:
        self.shape, self.background, self.rotation, self.shift, self.flip = shape, background, rotation, shift, flip

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        images = x.reshape(len(x), *self.shape)

        def uniform(most: float) -> Tensor:
            return (torch.rand(len(x), generator=generator) * 2 - 1) * most

        angle, right, down = uniform(math.radians(self.rotation)), uniform(2 * self.shift), uniform(2 * self.shift)
        mirror = (
            torch.where(torch.rand(len(x), generator=generator) < 0.5, -1.0, 1.0) if self.flip else torch.ones(len(x))
        )
        height, width = self.shape[-2:]
        rows = [angle.cos() * mirror, -angle.sin() * height / width, right, angle.sin() * mirror * width / height]
        theta = torch.stack([*rows, angle.cos(), down], dim=1).view(-1, 2, 3).to(images)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        moved = F.grid_sample(images - self.background, grid, padding_mode="zeros", align_corners=False)
        return (moved + self.background).reshape(x.shape)
