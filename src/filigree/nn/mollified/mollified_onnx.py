"""A mollified block stands in an ONNX file in plain torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PlainBlock(nn.Module):
    """It is a `MollifiedBlock` in eval mode."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.form = f"block at p = {self.block.p if self.block.expected else 0:g}"

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        p = block.p if block.expected else 0.0
        y = block.body(x)
        skip = block._skip(x, y.shape) if p or block.residual else None
        if p == 1 and skip is not None:
            return skip
        h: Tensor = block.activation(y + skip if block.residual else y)
        return h if not p or skip is None else p * skip + (1 - p) * h
