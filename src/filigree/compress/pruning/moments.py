"""Second moments of rows that come chunk by chunk, and the least squares that they give."""

from __future__ import annotations

import torch
from torch import Tensor

MEMORY = 1 << 30  # bytes that the moments of a layer, and the rows of all layers, may take (rows a quarter of it)


def bytes_of(width: int, outputs: int) -> int:
    """What `Moments` and their solution hold at most: float64, the matrix, its factor and a chunk's products."""
    return 8 * (5 * width * width + 8 * width * outputs)


class Moments:
    """Of rows x `(rows, width)` and y `(rows, outputs)`: means, covariance of x, and covariance of x with y.

    Products are taken in the rows' own precision about the mean of the first rows, and added in float64.

    Args:
        centre: about the means; else about zero, and the means are zero.
    """

    def __init__(self, width: int, outputs: int, centre: bool = True) -> None:
        self._centre, self.rows = centre, 0
        self._own = torch.zeros(width, width, dtype=torch.float64)
        self._cross = torch.zeros(width, outputs, dtype=torch.float64)
        self._about_x = self._about_y = torch.empty(0)
        self._sum_x, self._sum_y = torch.zeros(width, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        if not self.rows:
            self._about_x, self._about_y = x.mean(0) * self._centre, y.mean(0) * self._centre
        x, y = (rows.float() if rows.element_size() < 4 else rows for rows in (x - self._about_x, y - self._about_y))
        self._own += x.T @ x
        self._cross += x.T @ y
        self._sum_x += x.sum(0, dtype=torch.float64) * self._centre
        self._sum_y += y.sum(0, dtype=torch.float64) * self._centre
        self.rows += len(x)

    @property
    def mean_x(self) -> Tensor:
        return self._about_x.double() + self._sum_x / self.rows

    @property
    def mean_y(self) -> Tensor:
        return self._about_y.double() + self._sum_y / self.rows

    def own(self) -> Tensor:
        """The covariance of x."""
        shift = self._sum_x / self.rows
        return torch.addr(self._own / self.rows, shift, shift, alpha=-1)

    def cross(self) -> Tensor:
        """The covariance of x with y."""
        return torch.addr(self._cross / self.rows, self._sum_x / self.rows, self._sum_y / self.rows, alpha=-1)

    def solve(self, start: Tensor, damping: float) -> Tensor:
        """`argmin_W |W x - y|^2 + damping v |W - start|^2`, `(outputs, width)`; v the mean variance of x."""
        own, right = self.own(), self.cross()
        ridge = damping * float(own.diagonal().mean().clamp(min=1e-12))
        own.diagonal().add_(ridge)
        right.add_(start.T, alpha=ridge)
        return torch.linalg.solve(own, right).T

    def error(self, weight: Tensor, shift: Tensor | None, gram: Tensor | None = None) -> float:
        """The mean of `|W x + b - y|^2`, but for what depends on neither W nor b.

        Args:
            shift: b; None: zero. gram: `(outputs, outputs)`, how errors of the outputs are weighed; None: alike.
        """
        products = weight @ self.own() @ weight.T - 2 * weight @ self.cross()
        away = weight @ self.mean_x - self.mean_y + (0 if shift is None else shift)
        if gram is None:
            return float(products.diagonal().sum() + away @ away)
        return float((gram * products).sum() + away @ gram @ away)
