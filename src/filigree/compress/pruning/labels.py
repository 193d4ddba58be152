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

    def begin_with(self, other: Labels) -> None:
        """Take over the classes that others of the same labels have come to."""
        count = len(self._parents)
        self._parents = other.classes(torch.arange(count))

    def new(self, count: int) -> Tensor:
        """So many labels, each in a class of its own."""
        labels = torch.arange(len(self._parents), len(self._parents) + count)
        self._parents = torch.cat([self._parents, labels])
        return labels

    def classes(self, labels: Tensor) -> Tensor:
        """The label that stands for the class of each."""
        roots = self._parents[labels]
        while not torch.equal(above := self._parents[roots], roots):
            roots = above
        return roots

    def among(self, labels: Tensor, others: Tensor) -> Tensor:
        """Whether each of the labels is in a class of the others."""
        chosen = torch.zeros(len(self._parents), dtype=torch.bool)
        chosen[self.classes(others)] = True
        return chosen[self.classes(labels)]

    def count(self) -> int:
        """How many classes there are."""
        return int((self._parents == torch.arange(len(self._parents))).sum())

    def unite(self, ones: Tensor, others: Tensor, reason: str = "") -> None:
        """Make one class of each two; with what is `NONE`, fix it, for this reason."""
        ones, others = self.classes(ones).flatten(), self.classes(others).flatten()
        none = (ones == NONE) != (others == NONE)
        if bool(none.any()):
            self.fix((ones + others)[none], reason or self._reasons[NONE])  # NONE is 0
        while bool((differ := (ones != others) & ~none).any()):
            low, high = torch.minimum(ones, others)[differ], torch.maximum(ones, others)[differ]
            self._parents.scatter_reduce_(0, high, low, "amin")
            for label in high.unique().tolist():
                if label in self._reasons:
                    self._reasons.setdefault(int(self.classes(torch.tensor(label))), self._reasons[label])
            ones, others = self.classes(ones), self.classes(others)

    def fix(self, labels: Tensor, reason: str, first: bool = False) -> None:
        """What has these labels has to stay; of several reasons the first one is kept, or one that is to come first."""
        for label in self.classes(labels).unique().tolist():
            self._reasons[label] = reason if first else self._reasons.get(label, reason)

    def why_fixed(self, labels: Tensor) -> str:
        """Why one of these has to stay; "" where none has."""
        return next((self._reasons[label] for label in self.classes(labels).tolist() if label in self._reasons), "")
