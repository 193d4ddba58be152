"""Random features of kernels by Fastfood, as a scikit-learn transformer."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from filigree.nn.structured.fastfood import FastfoodLinear


class FastfoodFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Features whose inner products approximate a kernel, in O(n log d) (Le et al. 2013; Moczulski 2019, 3.9.4).

    Args:
        n_components: features: for the RBF kernel cosines, then sines (at an odd number one sine fewer). The error
            falls as 1 / sqrt of it.
        kernel: "rbf": `exp(-gamma |x - y|^2)` (eq. 3.17); "arc_cosine": `E relu(w x) relu(w y)` over w ~ N(0, I), of
            order 1 (ReLU features).
        gamma: of the RBF kernel.
        random_state: an integer, a RandomState, or None.
    """

    def __init__(
        self, n_components: int = 100, kernel: str = "rbf", gamma: float = 1.0, random_state: Any = None
    ) -> None:
        self.n_components = n_components
        self.kernel = kernel
        self.gamma = gamma
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Draw the random matrices for the width of `X` `(samples, features)`."""
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        if self.kernel not in ("rbf", "arc_cosine"):
            raise ValueError(f"FastfoodFeatures: kernel must be 'rbf' or 'arc_cosine'. Got {self.kernel!r}.")
        rbf = self.kernel == "rbf"
        if self.n_components < 1 or self.gamma <= 0:
            raise ValueError(
                "FastfoodFeatures: n_components must be at least 1 and gamma above 0. "
                f"Got {self.n_components} and {self.gamma}."
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        sigma = (2 * self.gamma) ** 0.5 if rbf else 1.0
        outputs = self.n_components + self.n_components % 2 * rbf
        self.layer_ = FastfoodLinear(
            X.shape[1],
            outputs,
            False,
            sigma,
            features="cos_sin" if rbf else "relu",
            seed=seed,
        ).double()
        self._n_features_out = self.n_components
        return self

    def transform(self, X: Any) -> np.ndarray:
        """`(samples, features)` to `(samples, n_components)`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        with torch.no_grad():
            z = self.layer_(torch.from_numpy(np.array(X, dtype=np.float64)))[:, : self.n_components]
        if self.kernel == "arc_cosine":
            z *= self.n_components**-0.5
        return z.numpy().astype(X.dtype, copy=False)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
