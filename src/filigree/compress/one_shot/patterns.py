"""Where the weights that stay may be: anywhere, n of each m neighbours, or whole blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Pattern:
    """Which weights of a matrix `(..., rows, columns)` stay or go together.

    Args:
        n, m: of each m neighbouring columns of a row n stay; m = 0: as many as a share says, wherever they are.
        rows, columns: the sides of the blocks that stay or go as one; at the far sides they are cut.
    """

    n: int = 0
    m: int = 0
    rows: int = 1
    columns: int = 1

    @classmethod
    def of(cls, text: str | tuple[int, int] | None) -> Pattern:
        """From "n:m", a pair (rows, columns), or None."""
        if text is None:
            return cls()
        if not isinstance(text, str):
            return cls(rows=text[0], columns=text[1])
        match = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise ValueError(f'OneShot: pattern must be "n:m" with n < m, or (rows, columns). Got {text!r}.')
        return cls(int(match[1]), int(match[2]))

    def blocks(self, scores: Tensor) -> Tensor:
        """The sums of the scores over the blocks, `(..., blocks down, blocks across)`."""
        if self.rows == self.columns == 1:
            return scores
        rows, columns = scores.shape[-2:]
        padded = F.pad(scores, (0, -columns % self.columns, 0, -rows % self.rows))
        return padded.unflatten(-1, (-1, self.columns)).unflatten(-3, (-1, self.rows)).sum((-1, -3))

    def spread(self, blocks: Tensor, rows: int, columns: int) -> Tensor:
        """The number of each block at each of its weights."""
        return blocks.repeat_interleave(self.rows, -2).repeat_interleave(self.columns, -1)[..., :rows, :columns]

    def largest(self, scores: Tensor, keep: float, by_row: bool = False) -> Tensor:
        """Where the weights of the highest scores are: truth values in the shape of the scores.

        Args:
            keep: the share that stays, of all or of each row; at least one weight does.
        """
        if self.m:
            groups = scores.unflatten(-1, (-1, self.m))
            best = groups.topk(self.n, -1).indices
            return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True).flatten(-2)
        blocks = self.blocks(scores)
        flat = blocks if by_row else blocks.reshape(1, -1)
        best = flat.topk(max(1, round(keep * flat.shape[-1])), -1).indices
        mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, best, True).view_as(blocks)
        return self.spread(mask, *scores.shape[-2:])
