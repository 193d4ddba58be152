"""Pruning to the distinct units."""

from filigree.compress.pruning.budget import Budget, MaxError
from filigree.compress.pruning.methods import (
    ClusterPruning,
    MagnitudePruning,
    RandomPruning,
    SubClustering,
    SubsetPruning,
)
from filigree.compress.pruning.resized import Resized
from filigree.compress.pruning.theory import Deviation, net_deviation, retraining_bound

__all__ = [
    "Budget",
    "ClusterPruning",
    "Deviation",
    "MagnitudePruning",
    "MaxError",
    "RandomPruning",
    "Resized",
    "SubClustering",
    "SubsetPruning",
    "net_deviation",
    "retraining_bound",
]
