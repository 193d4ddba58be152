"""A sparse multilayer perceptron for regression, as a scikit-learn estimator."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data
from torch import Tensor, nn
from torch.nn import functional

from filigree.data.preprocessing import Preprocessing
from filigree.nn.standardize import Standardize
from filigree.sklearn.running import rescale_, takes_parts
from filigree.sklearn.sparse_mlp import FLOATS, SparseMLP


class SparseMLPRegressor(RegressorMixin, SparseMLP):
    """Numbers by a network that is sparse from the start, like `sklearn.neural_network.MLPRegressor`.

    The loss is half the mean squared error, of standardised targets unless `standardize` is off; y may have several
    columns. With noisy targets it pays to stop early (`early_stopping=True`) or to learn slower. Parameters and
    attributes are those of `filigree.sklearn.sparse_mlp.SparseMLP`; besides:

    Attributes:
        target_scaler_: of the targets; None without `standardize`. n_outputs_: their number.
    """

    _learning_rate = 0.03

    @available_if(takes_parts)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """One epoch on these data. Sparse ones are made dense where those of the first call were.

        `sample_weight` `(samples,)` are factors of the samples' losses: other than in `fit`, whose weights are relative
        to their mean, so that calls compare.
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: Any) -> np.ndarray:
        """`(samples, features)` to `(samples,)`, or `(samples, targets)` where there are several."""
        outputs = self._outputs(X).numpy()
        if self.target_scaler_ is not None:
            outputs = self.target_scaler_.inverse_transform(outputs.astype(np.float64))  # targets may be far from 0
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def _after(self, dtype: torch.dtype) -> list[tuple[str, nn.Module]]:
        if self.target_scaler_ is None:
            return []
        mean, scale = self.target_scaler_.mean_, self.target_scaler_.scale_
        return [("targets", Standardize(-mean / scale, 1 / scale, dtype))]  # the inverse: y scale + mean

    def _validate(self, X: Any, y: Any, reset: bool) -> tuple[Any, np.ndarray]:
        return validate_data(
            self, X, y, accept_sparse="csr", dtype=FLOATS, reset=reset, multi_output=True, y_numeric=True
        )

    def _learn_targets(
        self, y: np.ndarray, weights: np.ndarray | None, kept: np.ndarray | slice, classes: Any = None
    ) -> int:
        columns = y.reshape(len(y), -1)[kept]
        self.target_scaler_ = StandardScaler().fit(columns, None, weights) if self.standardize else None
        self.n_outputs_ = columns.shape[1]
        return self.n_outputs_

    @property
    def _width(self) -> int:
        return self.n_outputs_

    def _rescale(self, X: Any, y: np.ndarray, weights: np.ndarray | None) -> None:
        super()._rescale(X, y, weights)
        if self.target_scaler_ is not None:
            rescale_(self.target_scaler_, y.reshape(len(y), -1), weights)

    def _targets(self, y: np.ndarray) -> Tensor:
        columns = np.array(y, float).reshape(len(y), -1)
        if columns.shape[1] != self.n_outputs_:
            raise ValueError(
                f"SparseMLPRegressor: y must have {self.n_outputs_} column(s), as before. Got {columns.shape[1]}."
            )
        if self.target_scaler_ is not None:
            columns = self.target_scaler_.transform(columns)
        return torch.from_numpy(columns).to(self._dtype)

    def _losses(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(output, target, reduction="none").mean(1) / 2

    def _constant_loss(self, target: Tensor, weights: Tensor) -> float:
        shares = (weights / weights.sum()).unsqueeze(1)
        mean = (shares * target.double()).sum(0)
        return float((shares * (target.double() - mean).square()).sum(0).mean()) / 2

    def _preprocessing(self) -> Preprocessing | None:
        if self.n_outputs_ != 1:
            return None
        names = tuple(map(str, getattr(self, "feature_names_in_", ())))
        scaled = self.target_scaler_
        mean, deviation = (0.0, 1.0) if scaled is None else (float(scaled.mean_[0]), float(scaled.scale_[0]))
        means, scales = map(torch.from_numpy, self._scales())
        return Preprocessing(
            means, scales, names, target_name="".join(self._target_names), task="regression", target_mean=mean,
            target_deviation=deviation,
        )  # fmt: skip

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
