"""scikit-learn estimators; loaded when they are used, as scikit-learn brings threads of its own."""

from filigree.optional import absent

try:
    from filigree.sklearn.fastfood_features import FastfoodFeatures
    from filigree.sklearn.sparse_mlp_classifier import SparseMLPClassifier
    from filigree.sklearn.sparse_mlp_regressor import SparseMLPRegressor
except ImportError as error:
    raise absent(error, __name__, "sklearn") from None

__all__ = ["FastfoodFeatures", "SparseMLPClassifier", "SparseMLPRegressor"]
