"""What changes after training."""

from filigree.compress.compression import Compression, compress_
from filigree.compress.fit import Fit
from filigree.compress.monte_carlo import MonteCarlo
from filigree.compress.path_sampling import PathSampling
from filigree.compress.pruning import (
    Budget,
    ClusterPruning,
    MagnitudePruning,
    MaxError,
    Origin,
    RandomPruning,
    Resized,
    SubClustering,
    SubsetPruning,
    fit_gamma,
    net_deviation,
    retraining_bound,
)
from filigree.compress.rounded import Rounded

__all__ = [
    "Budget",
    "ClusterPruning",
    "Compression",
    "Fit",
    "MagnitudePruning",
    "MaxError",
    "MonteCarlo",
    "Origin",
    "PathSampling",
    "RandomPruning",
    "Resized",
    "Rounded",
    "SubClustering",
    "SubsetPruning",
    "compress_",
    "fit_gamma",
    "net_deviation",
    "retraining_bound",
]
