"""A sparse multilayer perceptron that classifies, as a scikit-learn estimator."""

from __future__ import annotations

import json
import math
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data
from torch import Tensor, nn
from torch.nn import functional

from filigree.sklearn.sparse_mlp import FLOATS, SparseMLP, takes_parts


class SparseMLPClassifier(ClassifierMixin, SparseMLP):
    """Classes by a network that is sparse from the start, like `sklearn.neural_network.MLPClassifier`.

    The loss is the cross entropy of the softmax over the outputs, one a class. Parameters and attributes are those of
    `filigree.sklearn.sparse_mlp.SparseMLP`; besides:

    Attributes:
        classes_: the labels, sorted.
    """

    _learning_rate = 0.2

    @available_if(takes_parts)
    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """One epoch on these data. The first call needs all `classes` that will ever come."""
        if classes is None and not hasattr(self, "network_"):
            raise ValueError("SparseMLPClassifier: classes must be given in the first call of partial_fit. Got None.")
        if classes is not None and hasattr(self, "network_") and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"SparseMLPClassifier: classes must be those of the first call, {self.classes_}. Got {classes}."
            )
        return self._partial_fit(X, y, lambda y: self._learn_targets(y, classes))

    def predict(self, X: Any) -> np.ndarray:
        """`(samples, features)` to the most probable labels `(samples,)`."""
        outputs = self._outputs(X)
        return self.classes_[outputs.argmax(1).numpy()]

    def predict_proba(self, X: Any) -> np.ndarray:
        """`(samples, features)` to probabilities `(samples, classes)`, in the order of `classes_`."""
        return self._outputs(X).softmax(1).numpy()

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithms of `predict_proba`, finite where that is 0."""
        return self._outputs(X).log_softmax(1).numpy()

    def _after(self, dtype: torch.dtype) -> list[tuple[str, nn.Module]]:
        return [("probabilities", nn.Softmax(1))]

    def _names(self) -> dict[str, str]:
        return super()._names() | {"class_names": json.dumps([str(name) for name in self.classes_], ensure_ascii=False)}

    def _validate(self, X: Any, y: Any, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, dtype=FLOATS, reset=reset)
        check_classification_targets(y)
        return X, column_or_1d(y, warn=True)

    def _learn_targets(self, y: np.ndarray, classes: Any = None) -> int:
        known = np.unique(y if classes is None else np.asarray(classes))
        _check_labels(y, known)
        self.classes_ = known
        return len(known)

    def _targets(self, y: np.ndarray) -> Tensor:
        _check_labels(y, self.classes_)
        return torch.from_numpy(np.searchsorted(self.classes_, y))

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target)

    def _constant_loss(self, target: Tensor) -> float:
        shares = target.bincount() / len(target)
        return float(torch.special.entr(shares).sum())

    def _blind_loss(self, target: Tensor) -> float:
        return math.log(len(self.classes_))


def _check_labels(y: np.ndarray, classes: np.ndarray) -> None:
    unknown = np.setdiff1d(y, classes)
    if len(unknown):
        raise ValueError(f"SparseMLPClassifier: y must be of the classes {classes}. Got {unknown[0]!r} too.")
