"""What changes after training."""

from filigree.compress.fit import Fit
from filigree.compress.monte_carlo import MonteCarlo
from filigree.compress.path_sampling import PathSampling
from filigree.compress.pruning import (
    Budget,
    ClusterPruning,
    MagnitudePruning,
    MaxError,
    RandomPruning,
    Resized,
    SubClustering,
    SubsetPruning,
    net_deviation,
    retraining_bound,
)
from filigree.compress.rounded import Rounded

__all__ = [
    "Budget",
    "ClusterPruning",
    "Fit",
    "MagnitudePruning",
    "MaxError",
    "MonteCarlo",
    "PathSampling",
    "RandomPruning",
    "Resized",
    "Rounded",
    "SubClustering",
    "SubsetPruning",
    "net_deviation",
    "retraining_bound",
]
