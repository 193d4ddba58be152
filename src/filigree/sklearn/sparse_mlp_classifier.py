"""A sparse multilayer perceptron that classifies, as a scikit-learn estimator."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import scipy  # its parts load at their first use
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor, nn

from filigree.data.preprocessing import Preprocessing
from filigree.sklearn.calibration import cool_, temperature_of, why_doubtful
from filigree.sklearn.labels import OneLabel, column_of, labels_of, learned_classes, refuse_other_targets, same_classes
from filigree.sklearn.running import takes_parts
from filigree.sklearn.sample_weights import by_class, by_columns
from filigree.sklearn.sparse_mlp import FLOATS, SparseMLP


class SparseMLPClassifier(ClassifierMixin, SparseMLP):
    """Classes by a network that is sparse from the start, like `sklearn.neural_network.MLPClassifier`.

    The loss is the cross entropy of the softmax over the outputs, one a class. Where y has several columns of 0 and 1
    (labels of which a sample may have several), it is that of each output's sigmoid, and `predict` and `predict_proba`
    give a column for each label. Other columns hold a class each, as scikit-learn's trees take them: the loss is the
    mean of theirs, `predict` gives `(samples, columns)`, and `predict_proba` and `classes_` are lists, an array a
    column. Parameters and attributes are those of `filigree.sklearn.sparse_mlp.SparseMLP`; besides:

    Args:
        class_weight: "balanced": each class weighs as much as another in the loss; a dict of class to weight, 1 for
            classes that it lacks; None. Of several columns a list of dicts, or "balanced": a sample's weight is the
            product of its columns'.
        calibrate: hold out `validation_fraction` of the samples (with `early_stopping` the same ones), and divide the
            last layer by the temperature in [0.1, 10] at which their cross entropy is least, each sample counting once
            whatever its weight (Guo et al. 2017). The predicted classes stay. A `UserWarning` says that fewer than 20
            samples were held out, or that the temperature is at an end of its range.

    Attributes:
        classes_: the labels, sorted; of columns of 0 and 1 their numbers; of other columns a list of each one's.
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
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """One epoch on these data. The first call needs all `classes` that will ever come.

        Sparse data are made dense where those of the first call were, whose mean is subtracted.

        Args:
            classes: of several columns, a list of each one's; nothing that is not 0 or 1 comes later where it is a
                flat list.
            sample_weight: `(samples,)`, factors of the samples' losses: other than in `fit`, whose weights are
                relative to their mean, so that calls compare.
        """
        if classes is None and not hasattr(self, "network_"):
            raise ValueError("SparseMLPClassifier: classes must be given in the first call of partial_fit. Got None.")
        if classes is not None and hasattr(self, "network_") and not same_classes(classes, self.classes_):
            raise ValueError(
                f"SparseMLPClassifier: classes must be those of the first call, {self.classes_}. Got {classes}."
            )
        if isinstance(self.class_weight, str):
            raise ValueError(
                "SparseMLPClassifier: partial_fit does not know how many samples of a class will come: class_weight "
                "must be None, a dict, or a list of dicts. Of labels y that are known: dict(zip(classes, "
                f"compute_class_weight('balanced', classes=classes, y=y))) of sklearn.utils. Got {self.class_weight!r}."
            )
        return self._partial_fit(X, y, sample_weight, classes)

    def predict(self, X: Any) -> np.ndarray:
        """`(samples, features)` to the most probable labels `(samples,)`; of several columns `(samples, columns)`."""
        return self._labels.decisions(self._outputs(X))

    def predict_proba(self, X: Any) -> Any:
        """`(samples, features)` to probabilities `(samples, classes)`, in the order of `classes_`.

        Of columns of 0 and 1 `(samples, labels)`; of columns of classes a list of each one's `(samples, classes)`.
        """
        return self._labels.probabilities(self._outputs(X))

    def predict_log_proba(self, X: Any) -> Any:
        """The logarithms of `predict_proba`, finite where that is 0."""
        return self._labels.log_probabilities(self._outputs(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The accuracy: the share of the samples whose label, or each of whose columns, is right."""
        predicted, y = self.predict(X), y.toarray() if scipy.sparse.issparse(y) else np.asarray(y)
        if y.shape != predicted.shape and y.shape != (*predicted.shape, 1):
            raise ValueError(f"SparseMLPClassifier: y must have the shape {predicted.shape}. Got {y.shape}.")
        right = np.asarray(predicted == y.reshape(predicted.shape))
        return float(np.average(right.reshape(len(right), -1).all(1), weights=sample_weight))

    @property
    def _labels(self) -> OneLabel:
        check_is_fitted(self, "classes_")
        return labels_of(self.classes_, self._several)

    @property
    def _width(self) -> int:
        return self._labels.outputs

    def _after(self, dtype: torch.dtype) -> list[tuple[str, nn.Module]]:
        return [("probabilities", self._labels.answer())]

    def _names(self) -> dict[str, str]:
        named: dict[str, Sequence[Any]] = {"class_names": self._labels.names()}
        named |= {"target_names": self._names_of_columns()} if self._several else {}
        return super()._names() | {key: json.dumps(names, ensure_ascii=False) for key, names in named.items()}

    def _validate(self, X: Any, y: Any, reset: bool) -> tuple[Any, np.ndarray]:
        shape = y.shape if hasattr(y, "shape") else np.asarray(y).shape
        several = len(shape) == 2 and shape[1] > 1
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=FLOATS, reset=reset, multi_output=several)
        y = (y.toarray() if scipy.sparse.issparse(y) else np.asarray(y)) if several else column_or_1d(y, warn=True)
        refuse_other_targets(y)
        return X, y

    def _learn_targets(
        self, y: np.ndarray, weights: np.ndarray | None, kept: np.ndarray | slice, classes: Any = None
    ) -> int:
        self.classes_, self._several, self.temperature_ = learned_classes(y, classes), y.ndim > 1, 1.0
        return self._width

    def _weights_of_classes(self, y: np.ndarray, classes: Any) -> np.ndarray | None:
        if self.class_weight is None:
            return None
        known = learned_classes(y, classes)
        if y.ndim == 1:
            return by_class(self.class_weight, y, known, type(self).__name__)
        columns = [column_of(y, i) for i in range(y.shape[1])]
        each = known if isinstance(known, list) else [np.arange(2)] * len(columns)
        return by_columns(self.class_weight, columns, each, type(self).__name__)

    def _targets(self, y: np.ndarray) -> Tensor:
        labels, columns = self._labels, y.shape[1] if y.ndim > 1 else 1
        if labels.columns != columns:
            raise ValueError(
                f"SparseMLPClassifier: y must have {labels.columns} column(s), as before. Got shape {y.shape}."
            )
        return labels.targets(y)

    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        return self._labels.losses(output, target)

    def _constant_loss(self, target: Tensor, weights: Tensor) -> float:
        return self._labels.constant_loss(target, weights / weights.sum())

    def _blind_loss(self, constant: float) -> float:
        return self._labels.blind_loss()

    def _calibrate(self, outputs: Tensor, target: Tensor) -> None:
        self.temperature_ = temperature_of(outputs, lambda scaled: self._losses(scaled, target).mean())
        doubt = why_doubtful(self.temperature_, len(target))
        if doubt:
            warnings.warn(f"SparseMLPClassifier: calibrate: {doubt}.", UserWarning, stacklevel=3)
        cool_(self.network_, self.temperature_)

    def _preprocessing(self) -> Preprocessing | None:
        features = tuple(map(str, getattr(self, "feature_names_in_", ())))
        mean, deviation = map(torch.from_numpy, self._scales())
        if self._several:
            columns = tuple(zip(self._names_of_columns(), self._labels.names_of_columns(), strict=True))
            return Preprocessing(mean, deviation, features, columns=columns)
        return Preprocessing(mean, deviation, features, tuple(self._labels.names()), "".join(self._target_names))

    def _names_of_columns(self) -> Sequence[str]:
        return self._target_names or [f"y{i + 1}" for i in range(self._labels.columns)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = tags.target_tags.multi_output = True
        return tags
