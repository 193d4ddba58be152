"""Standardisation of a network's inputs, as a layer before the first."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filigree.nn.capabilities import Capabilities
from filigree.ops.c_steps import ScaleShift

_NEAR = 64  # deviations from 0: up to there float32 rounds `scale x + shift` to 4e-6 of a deviation


class Standardize(Capabilities, nn.Module):
    """`y = (x - mean) / deviation`, computed in float64 and rounded to `dtype`; nothing in it is trained.

    Args:
        mean, deviation: a number for each feature `(features,)`, in the order of C where a sample has several sides, or
            one for all. dtype: of the output.

    Shape: `(batch, ...)` to the same.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Any, deviation: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64).reshape(-1).clone())
        self.register_buffer("deviation", torch.as_tensor(deviation, dtype=torch.float64).reshape(-1).clone())
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        y = (x.flatten(1).double() - self.mean) / self.deviation
        return y.to(self.dtype).reshape(x.shape)

    def extra_repr(self) -> str:
        return f"features={self.mean.numel()}" if self.mean.numel() > 1 else ""

    def why_not_prunable(self) -> str | None:
        return "has a number for each input" if self.mean.numel() > 1 else None

    def c_form(self, name: str) -> list[Any]:
        """A scale and shift; where the mean is far from 0, first the shift, so that float32 loses nothing."""
        mean, deviation = self.mean.cpu().numpy(), self.deviation.cpu().numpy()
        if np.abs(mean / deviation).max(initial=0) <= _NEAR:
            return [ScaleShift(name, 1 / deviation, -mean / deviation)]
        rounded = mean.astype(np.float32).astype(np.float64)
        return [
            ScaleShift(name, np.ones_like(mean), -rounded),
            ScaleShift(name, 1 / deviation, (rounded - mean) / deviation),
        ]
