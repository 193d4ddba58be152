"""Pruning to the distinct units."""

from filigree.compress.pruning.budget import Budget, MaxError
from filigree.compress.pruning.deviation import Deviation, net_deviation, normalised
from filigree.compress.pruning.methods import (
    ClusterPruning,
    MagnitudePruning,
    RandomPruning,
    SubClustering,
    SubsetPruning,
)
from filigree.compress.pruning.retraining import Gamma, RetrainingBaseline, fit_gamma, retraining_bound

__all__ = [
    "Budget",
    "ClusterPruning",
    "Deviation",
    "Gamma",
    "MagnitudePruning",
    "MaxError",
    "RandomPruning",
    "RetrainingBaseline",
    "SubClustering",
    "SubsetPruning",
    "fit_gamma",
    "net_deviation",
    "normalised",
    "retraining_bound",
]
