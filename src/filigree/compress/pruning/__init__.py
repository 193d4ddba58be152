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

__all__ = [
    "Budget",
    "ClusterPruning",
    "MagnitudePruning",
    "MaxError",
    "RandomPruning",
    "Resized",
    "SubClustering",
    "SubsetPruning",
]
