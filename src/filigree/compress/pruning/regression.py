"""Least squares that do not follow chance: where rows are few, some of them are held out and choose the damping."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from filigree.compress.pruning.moments import Moments

FEW = 32  # rows for each column below which some are held out: positions of an image are not independent of each other
STRONGER = (1, 10, 100, 1_000)  # times the damping that is asked for: what the rows held out choose from

Fit = tuple[Tensor, Tensor | None]  # W `(outputs, width)` and b; None: about zero


class Regression:
    """The regression of rows y `(rows, outputs)` on rows x `(rows, width)`, from weights on that there are already.

    Rows that are held out choose between several dampings, a mere shift of the means, and the weights as they are: that
    with the least error on them is taken. Without such rows the least damping is.
    """

    def __init__(self, width: int, outputs: int, centre: bool) -> None:
        self._sizes = width, outputs, centre
        self.centre, self.fitted = centre, Moments(width, outputs, centre)
        self.held: Moments | None = None

    def add(self, x: Tensor, y: Tensor, held: int) -> None:
        """Rows, the last `held` of which nothing is fitted to."""
        fitted = len(x) - held
        if fitted:
            self.fitted.add(x[:fitted], y[:fitted])
        if held:
            self.held = self.held or Moments(*self._sizes)
            self.held.add(x[fitted:], y[fitted:])

    def solve(
        self, start: Tensor, shift: Tensor | None, damping: float, gram: Tensor | None = None,
        solved: Callable[[Moments, float], Tensor] | None = None,
    ) -> Fit | None:  # fmt: skip
        """W and b; None where the weights as they are are the best.

        Args:
            start, shift: the weights and the bias that there are. damping: the least one. gram: `(outputs, outputs)`,
                how errors of the outputs are weighed. solved: W by moments and damping; None: `Moments.solve`.
        """
        if not self.fitted.rows:
            return None

        def fit(damped: float) -> Fit:
            weight = self.fitted.solve(start, damped) if solved is None else solved(self.fitted, damped)
            return self._shifted(weight)

        if self.held is None:
            return fit(damping)

        def candidates() -> Iterator[Fit]:
            yield from (fit(damping * factor) for factor in STRONGER)
            if self.centre:
                yield self._shifted(start)

        best, least = None, self.held.error(start, shift, gram)
        for candidate in candidates():
            if (error := self.held.error(*candidate, gram)) < least:
                best, least = candidate, error
        return best

    def _shifted(self, weight: Tensor) -> Fit:
        return weight, self.fitted.mean_y - weight @ self.fitted.mean_x if self.centre else None
