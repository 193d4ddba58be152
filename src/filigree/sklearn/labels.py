"""What a classifier answers: a label a sample, several that are there or not, or a class in each of several columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from torch import Tensor, nn
from torch.nn import functional

from filigree.nn.capabilities import Capabilities
from filigree.ops.c_steps import Softmax


class OneLabel:
    """A class a sample: the softmax of an output for each class. `classes` `(classes,)` are sorted."""

    def __init__(self, classes: np.ndarray) -> None:
        self.classes, self.outputs, self.columns = classes, len(classes), 1

    def targets(self, y: np.ndarray) -> Tensor:
        """The numbers `(samples,)` of their classes. `ValueError`: one is not of them."""
        unknown = np.setdiff1d(y, self.classes)
        if len(unknown):
            raise ValueError(
                f"SparseMLPClassifier: y must be of the classes {self.classes}. Got {unknown.tolist()[0]!r} too."
            )
        return torch.from_numpy(np.searchsorted(self.classes, y))

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """The cross entropy of each sample, `(samples,)`, of targets `(samples,)` or `(samples, 1)`."""
        return functional.cross_entropy(output, target.reshape(-1).long(), reduction="none")

    def constant_loss(self, target: Tensor, shares: Tensor) -> float:
        """The loss of the best answer that does not look at X; shares `(samples,)` sum to 1."""
        return float(torch.special.entr(target.reshape(-1).long().bincount(shares)).sum())

    def blind_loss(self) -> float:
        """The loss of an answer by which all classes are alike."""
        return math.log(self.outputs)

    def decisions(self, output: Tensor) -> np.ndarray:
        """The most probable class of each sample."""
        return self.classes[output.argmax(1).numpy()]

    def probabilities(self, output: Tensor) -> Any:
        """`(samples, classes)`."""
        return output.softmax(1).numpy()

    def log_probabilities(self, output: Tensor) -> Any:
        """Their logarithms, finite where they are 0."""
        return output.log_softmax(1).numpy()

    def answer(self) -> nn.Module:
        """From a network's outputs to probabilities."""
        return nn.Softmax(1)

    def names(self) -> list[Any]:
        """The classes as words."""
        return [str(name) for name in self.classes.tolist()]

    def names_of_columns(self) -> list[tuple[str, ...]]:
        """The classes of each column of y as words; none: a label that is there or not."""
        return [tuple(self.names())]


class Indicators(OneLabel):
    """Labels that a sample has or has not, columns of 0 and 1: the sigmoid of an output for each label."""

    def __init__(self, classes: np.ndarray) -> None:
        super().__init__(classes)
        self.columns = len(classes)

    def targets(self, y: np.ndarray) -> Tensor:
        """0 and 1, `(samples, labels)`. `ValueError`: y holds another value."""
        other = np.setdiff1d(y, [0, 1])
        if len(other):
            raise ValueError(f"SparseMLPClassifier: y must be columns of 0 and 1, as before. Got {other[0]!r} too.")
        return torch.from_numpy(np.asarray(y, np.float64))

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over a sample's labels of the binary cross entropies."""
        return functional.binary_cross_entropy_with_logits(output, target.to(output.dtype), reduction="none").mean(1)

    def constant_loss(self, target: Tensor, shares: Tensor) -> float:
        ones = (shares.unsqueeze(1) * target.double()).sum(0)
        return float((torch.special.entr(ones) + torch.special.entr(1 - ones)).mean())

    def blind_loss(self) -> float:
        return math.log(2)

    def decisions(self, output: Tensor) -> np.ndarray:
        """0 and 1, `(samples, labels)`."""
        return (output > 0).long().numpy()

    def probabilities(self, output: Tensor) -> Any:
        """`(samples, labels)`."""
        return output.sigmoid().numpy()

    def log_probabilities(self, output: Tensor) -> Any:
        return functional.logsigmoid(output).numpy()

    def answer(self) -> nn.Module:
        return nn.Sigmoid()

    def names_of_columns(self) -> list[tuple[str, ...]]:
        return [()] * self.columns


class Columns(OneLabel):
    """A class in each of several columns, as scikit-learn's trees take them: a softmax for each column."""

    def __init__(self, classes: Sequence[np.ndarray]) -> None:
        self.parts = [OneLabel(each) for each in classes]
        self.sizes = [part.outputs for part in self.parts]
        self.outputs, self.columns = sum(self.sizes), len(self.parts)

    def targets(self, y: np.ndarray) -> Tensor:
        """The numbers of the classes, `(samples, columns)`."""
        return torch.stack([part.targets(column_of(y, i)) for i, part in enumerate(self.parts)], 1)

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over a sample's columns of the cross entropies."""
        pairs = zip(self.parts, output.split(self.sizes, 1), target.unbind(1), strict=True)
        return torch.stack([part.losses(*pair) for part, *pair in pairs]).mean(0)

    def constant_loss(self, target: Tensor, shares: Tensor) -> float:
        pairs = zip(self.parts, target.unbind(1), strict=True)
        return sum(part.constant_loss(column, shares) for part, column in pairs) / self.columns

    def blind_loss(self) -> float:
        return sum(part.blind_loss() for part in self.parts) / self.columns

    def decisions(self, output: Tensor) -> np.ndarray:
        """The most probable class of each column, `(samples, columns)`; objects where the columns' types differ."""
        chosen = [part.decisions(own) for part, own in self._split(output)]
        kinds = {column.dtype.kind for column in chosen}
        return np.stack(chosen if len(kinds) == 1 else [column.astype(object) for column in chosen], 1)

    def probabilities(self, output: Tensor) -> Any:
        """A list: `(samples, classes)` of each column."""
        return [part.probabilities(own) for part, own in self._split(output)]

    def log_probabilities(self, output: Tensor) -> Any:
        return [part.log_probabilities(own) for part, own in self._split(output)]

    def answer(self) -> nn.Module:
        return SoftmaxOfColumns(self.sizes)

    def names(self) -> list[Any]:
        """The classes of each column as words."""
        return [part.names() for part in self.parts]

    def names_of_columns(self) -> list[tuple[str, ...]]:
        return [tuple(names) for names in self.names()]

    def _split(self, output: Tensor) -> list[tuple[OneLabel, Tensor]]:
        return list(zip(self.parts, output.split(self.sizes, 1), strict=True))


class SoftmaxOfColumns(Capabilities, nn.Module):
    """`(..., sum of widths)` to the same: the softmax over each run of so many numbers in turn."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part.softmax(-1) for part in x.split(self.widths, -1)], -1)

    def c_form(self, name: str) -> list[Any]:
        """A softmax for each run."""
        return [Softmax(name, False, -1, tuple(self.widths))]


def labels_of(classes: Any, several: bool) -> OneLabel:
    """The kind of labels of a fitted classifier: a list of classes is one of each column."""
    if isinstance(classes, list):
        return Columns(classes)
    return Indicators(classes) if several else OneLabel(classes)


def learned_classes(y: np.ndarray, given: Any = None) -> Any:
    """The classes of y, or those that are given: an array; the labels' numbers where y's columns are of 0 and 1; a list
    of arrays, one of each column, for other columns or where a list of such is given.

    Raises:
        ValueError: `given` is not of y's kind, or lacks a class of y.
    """
    if y.ndim == 1:
        classes: Any = np.unique(y if given is None else np.asarray(given))
        OneLabel(classes).targets(y)
        return classes
    if given is None or all(np.ndim(each) == 0 for each in given):
        zeros_and_ones = y.dtype.kind in "biuf" and bool(np.isin(y, [0, 1]).all())
        if not zeros_and_ones and given is not None:
            raise ValueError(f"SparseMLPClassifier: classes must be a list, of each column's. Got {given!r}.")
        return np.arange(y.shape[1]) if zeros_and_ones else [np.unique(column_of(y, i)) for i in range(y.shape[1])]
    if len(given) != y.shape[1]:
        raise ValueError(f"SparseMLPClassifier: classes must be of {y.shape[1]} columns, as y. Got {len(given)}.")
    classes = [np.unique(np.asarray(each)) for each in given]
    Columns(classes).targets(y)
    return classes


def column_of(y: np.ndarray, number: int) -> np.ndarray:
    """A column of y, in a type of its own where y holds objects that are no words."""
    column = y[:, number]
    return np.array(column.tolist()) if y.dtype == object and not isinstance(column[0], str) else column


def refuse_other_targets(y: np.ndarray) -> None:
    """`ValueError` of scikit-learn where y, or a column of it, holds no classes."""
    if y.ndim == 1:
        return check_classification_targets(y)
    for i in range(y.shape[1]):
        column = column_of(y, i)
        if type_of_target(column) not in ("binary", "multiclass"):
            raise ValueError(
                f"SparseMLPClassifier: y must be classes in each column. Unknown label type in column {i}: "
                f"{type_of_target(column)}. Maybe you are trying to fit a classifier, which expects discrete classes."
            )
    return None


def same_classes(one: Any, other: Any) -> bool:
    """Whether two lists of classes, or lists of such lists, are equal in any order."""
    if isinstance(other, list):
        lists = not all(np.ndim(each) == 0 for each in one) and len(one) == len(other)
        return lists and all(np.array_equal(np.unique(a), b) for a, b in zip(one, other, strict=True))
    return all(np.ndim(each) == 0 for each in one) and np.array_equal(np.unique(one), other)
