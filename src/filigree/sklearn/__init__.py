"""scikit-learn estimators; imported when they are asked for, as scikit-learn brings threads of its own."""

from filigree.sklearn.fastfood_features import FastfoodFeatures

__all__ = ["FastfoodFeatures"]
