"""A sparse multilayer perceptron that classifies, as a scikit-learn estimator."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import scipy  # its parts load at their first use
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d, validate_data
from torch import Tensor, nn
from torch.nn import functional

from filigree.data.preprocessing import Preprocessing
from filigree.sklearn.calibration import cool_, temperature_of, why_doubtful
from filigree.sklearn.running import takes_parts
from filigree.sklearn.sample_weights import by_class
from filigree.sklearn.sparse_mlp import FLOATS, SparseMLP


class SparseMLPClassifier(ClassifierMixin, SparseMLP):
    """Classes by a network that is sparse from the start, like `sklearn.neural_network.MLPClassifier`.

    The loss is the cross entropy of the softmax over the outputs, one a class. Where y has several columns of 0 and 1
    (labels of which a sample may have several), it is that of each output's sigmoid, and `predict` and `predict_proba`
    give a column for each label. Parameters and attributes are those of `filigree.sklearn.sparse_mlp.SparseMLP`;
    besides:

    Args:
        class_weight: "balanced": each class weighs as much as another in the loss; a dict of class to weight, 1 for
            classes that it lacks; None.
        calibrate: hold out `validation_fraction` of the samples (with `early_stopping` the same ones), and divide the
            last layer by the temperature in [0.1, 10] at which their cross entropy is least, each sample counting once
            whatever its weight (Guo et al. 2017). The predicted classes stay. A `UserWarning` says that fewer than 20
            samples were held out, or that the temperature is at an end of its range.

    Attributes:
        classes_: the labels, sorted; of several columns their numbers.
        temperature_: of the calibration; 1 without.
    """

    _learning_rate = 0.2

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (500,),
        activation: Literal["relu", "tanh", "logistic"] = "relu",
        *,
        epsilon: float | None = None,
        density: float | None = None,
        schedule: Any = "Static",
        zeta: float | None = None,
        dropout: float = 0.0,
        standardize: bool = True,
        batch_size: int = 128,
        learning_rate_init: float | None = None,
        momentum: float = 0.9,
        max_iter: int = 200,
        tol: float = 1e-3,
        n_iter_no_change: float = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: bool = False,
        n_jobs: int | None = None,
        class_weight: Any = None,
        calibrate: bool = False,
    ) -> None:
        super().__init__(
            hidden_layer_sizes, activation, epsilon=epsilon, density=density, schedule=schedule, zeta=zeta,
            dropout=dropout, standardize=standardize, batch_size=batch_size, learning_rate_init=learning_rate_init,
            momentum=momentum, max_iter=max_iter, tol=tol, n_iter_no_change=n_iter_no_change,
            early_stopping=early_stopping, validation_fraction=validation_fraction, random_state=random_state,
            warm_start=warm_start, verbose=verbose, n_jobs=n_jobs,
        )  # fmt: skip
        self.class_weight = class_weight
        self.calibrate = calibrate

    @available_if(takes_parts)
    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """One epoch on these data. The first call needs all `classes` that will ever come.

        Sparse data are made dense where those of the first call were, whose mean is subtracted.
        """
        if classes is None and not hasattr(self, "network_"):
            raise ValueError("SparseMLPClassifier: classes must be given in the first call of partial_fit. Got None.")
        if classes is not None and hasattr(self, "network_") and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"SparseMLPClassifier: classes must be those of the first call, {self.classes_}. Got {classes}."
            )
        if isinstance(self.class_weight, str):
            raise ValueError(
                "SparseMLPClassifier: partial_fit does not know how many samples of a class will come: class_weight "
                f"must be None or a dict. Got {self.class_weight!r}."
            )
        known = np.unique(np.asarray(classes)) if not hasattr(self, "network_") else self.classes_
        return self._partial_fit(X, y, lambda y: self._learn_targets(y, None, slice(None), classes), known)

    def predict(self, X: Any) -> np.ndarray:
        """`(samples, features)` to the most probable labels `(samples,)`; of several columns to 0 and 1
        `(samples, labels)`."""
        outputs = self._outputs(X)
        if self._several:
            return (outputs > 0).long().numpy()
        return self.classes_[outputs.argmax(1).numpy()]

    def predict_proba(self, X: Any) -> np.ndarray:
        """`(samples, features)` to probabilities `(samples, classes)`, in the order of `classes_`."""
        outputs = self._outputs(X)
        return (outputs.sigmoid() if self._several else outputs.softmax(1)).numpy()

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithms of `predict_proba`, finite where that is 0."""
        outputs = self._outputs(X)
        return (functional.logsigmoid(outputs) if self._several else outputs.log_softmax(1)).numpy()

    def _after(self, dtype: torch.dtype) -> list[tuple[str, nn.Module]]:
        return [("probabilities", nn.Sigmoid() if self._several else nn.Softmax(1))]

    def _names(self) -> dict[str, str]:
        return super()._names() | {"class_names": json.dumps([str(name) for name in self.classes_], ensure_ascii=False)}

    def _validate(self, X: Any, y: Any, reset: bool) -> tuple[Any, np.ndarray]:
        sides = y.ndim if hasattr(y, "ndim") else np.asarray(y).ndim
        several = sides == 2 and type_of_target(y) == "multilabel-indicator"
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=FLOATS, reset=reset, multi_output=several,
        )  # fmt: skip
        if several:
            return X, np.asarray(y.toarray() if scipy.sparse.issparse(y) else y)
        check_classification_targets(y)
        return X, column_or_1d(y, warn=True)

    def _learn_targets(
        self, y: np.ndarray, weights: np.ndarray | None, kept: np.ndarray | slice, classes: Any = None
    ) -> int:
        self._several = y.ndim > 1
        self.temperature_ = 1.0
        known = np.arange(y.shape[1]) if self._several else np.unique(y if classes is None else np.asarray(classes))
        if not self._several:
            _check_labels(y, known)
        self.classes_ = known
        return len(known)

    def _weights_of_classes(self, y: np.ndarray, classes: np.ndarray | None) -> np.ndarray | None:
        if y.ndim > 1 and self.class_weight is not None:
            raise ValueError("SparseMLPClassifier: class_weight is for one label a sample. Got several columns.")
        return by_class(self.class_weight, y, np.unique(y) if classes is None else classes, type(self).__name__)

    def _targets(self, y: np.ndarray) -> Tensor:
        if self._several != (y.ndim > 1) or (self._several and y.shape[1] != len(self.classes_)):
            columns = len(self.classes_) if self._several else 1
            raise ValueError(f"SparseMLPClassifier: y must have {columns} column(s), as before. Got shape {y.shape}.")
        if self._several:
            return torch.from_numpy(y).to(self._dtype)
        _check_labels(y, self.classes_)
        return torch.from_numpy(np.searchsorted(self.classes_, y))

    def _target_of(self, columns: Tensor) -> Tensor:
        return super()._target_of(columns) if self._several else columns[:, 0].long()

    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        if self._several:
            return functional.binary_cross_entropy_with_logits(output, target.to(output.dtype), reduction="none").mean(
                1
            )
        return functional.cross_entropy(output, target, reduction="none")

    def _constant_loss(self, target: Tensor, weights: Tensor) -> float:
        shares = weights / weights.sum()
        if self._several:
            ones = (shares.unsqueeze(1) * target.double()).sum(0)
            return float((torch.special.entr(ones) + torch.special.entr(1 - ones)).mean())
        return float(torch.special.entr(target.bincount(shares)).sum())

    def _blind_loss(self, constant: float) -> float:
        return math.log(2 if self._several else len(self.classes_))

    def _calibrate(self, outputs: Tensor, target: Tensor) -> None:
        self.temperature_ = temperature_of(outputs, lambda scaled: self._losses(scaled, target).mean())
        doubt = why_doubtful(self.temperature_, len(target))
        if doubt:
            warnings.warn(f"SparseMLPClassifier: calibrate: {doubt}.", UserWarning, stacklevel=3)
        cool_(self.network_, self.temperature_)

    def _preprocessing(self) -> Preprocessing | None:
        if self._several:
            return None
        names = tuple(map(str, getattr(self, "feature_names_in_", ())))
        mean, deviation = map(torch.from_numpy, self._scales())
        return Preprocessing(mean, deviation, names, tuple(map(str, self.classes_.tolist())))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _check_labels(y: np.ndarray, classes: np.ndarray) -> None:
    unknown = np.setdiff1d(y, classes)
    if len(unknown):
        raise ValueError(f"SparseMLPClassifier: y must be of the classes {classes}. Got {unknown.tolist()[0]!r} too.")
