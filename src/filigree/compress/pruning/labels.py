"""Numbers that stand for channels, and which of them go together."""

from __future__ import annotations

import torch
from torch import Tensor

NONE = 0  # the label of what is no channel of a parameter: it cannot become smaller


class Labels:
    """Labels in classes that grow: what one operation meets elementwise stays or goes together.

    A class may be fixed: why it has to stay is said by `why_fixed`.
    """

    def __init__(self) -> None:
        self._parents = torch.zeros(1, dtype=torch.long)
        self._reasons: dict[int, str] = {NONE: "meet numbers that are no units"}

    def new(self, count: int) -> Tensor:
        """So many labels, each in a class of its own."""
        labels = torch.arange(len(self._parents), len(self._parents) + count)
        self._parents = torch.cat([self._parents, labels])
        return labels

    def classes(self, labels: Tensor) -> Tensor:
        """The label that stands for the class of each."""
        found = self._parents[labels]
        while not torch.equal(above := self._parents[found], found):
            found = above
        return found

    def unite(self, ones: Tensor, others: Tensor, reason: str = "") -> None:
        """Make one class of each two; with what is `NONE`, fix it, for this reason."""
        ones, others = self.classes(ones).flatten(), self.classes(others).flatten()
        differ = ones != others
        if not bool(differ.any()):
            return
        for one, other in torch.stack([ones[differ], others[differ]]).unique(dim=1).T.tolist():
            low, high = sorted((self._first(one), self._first(other)))
            if low == NONE:
                self._reasons.setdefault(high, reason or self._reasons[NONE])
            elif low != high:
                self._parents[high] = low
                if high in self._reasons:
                    self._reasons.setdefault(low, self._reasons[high])

    def fix(self, labels: Tensor, reason: str, first: bool = False) -> None:
        """What has these labels has to stay; of several reasons the first one is kept, or one that is to come first."""
        for label in self.classes(labels).unique().tolist():
            self._reasons[label] = reason if first else self._reasons.get(label, reason)

    def why_fixed(self, labels: Tensor) -> str:
        """Why one of these has to stay; "" where none has."""
        return next((self._reasons[label] for label in self.classes(labels).tolist() if label in self._reasons), "")

    def _first(self, label: int) -> int:
        parents = self._parents
        while (above := int(parents[label])) != label:
            label = above
        return label
