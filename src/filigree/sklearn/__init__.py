"""scikit-learn estimators; imported when they are asked for, as scikit-learn brings threads of its own."""

from filigree.sklearn.fastfood_features import FastfoodFeatures
from filigree.sklearn.sparse_mlp_classifier import SparseMLPClassifier
from filigree.sklearn.sparse_mlp_regressor import SparseMLPRegressor

__all__ = ["FastfoodFeatures", "SparseMLPClassifier", "SparseMLPRegressor"]
