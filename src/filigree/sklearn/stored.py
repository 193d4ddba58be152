"""Estimators out of files."""

from __future__ import annotations

from typing import Any

from torch import nn

from filigree.config import one_line
from filigree.sklearn.plain_estimators import ARRAYS, FITTED, SCALERS, array_of, parameter_of, scaler_of
from filigree.sklearn.sparse_mlp import SparseMLP
from filigree.sklearn.sparse_mlp_classifier import SparseMLPClassifier
from filigree.sklearn.sparse_mlp_regressor import SparseMLPRegressor

_KINDS: dict[str, type[SparseMLP]] = {kind.__name__: kind for kind in (SparseMLPClassifier, SparseMLPRegressor)}


def estimator_of(path: Any, network: nn.Module, plain: Any) -> SparseMLP:
    """The estimator that `SparseMLP.save` wrote, with its network. `ValueError`: it does not fit, in one line."""
    try:
        estimator = _KINDS[plain["kind"]](**{key: parameter_of(each) for key, each in plain["parameters"].items()})
        fitted = plain["fitted"]
        for keys, read in ((FITTED, lambda value: value), (ARRAYS, array_of), (SCALERS, scaler_of)):
            for key in (key for key in keys if key in fitted):
                setattr(estimator, key, read(fitted[key]))
        estimator.restore_network(network)
    except Exception as error:  # a hostile file can fail in any way; whoever reads it needs one kind of error
        raise ValueError(f"load: {path} does not hold a whole estimator: {one_line(error, 200)}") from None
    return estimator
