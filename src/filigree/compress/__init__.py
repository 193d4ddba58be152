"""What changes after training."""

from filigree.compress.compression import Compression, compress_
from filigree.compress.fit_structured import FitStructured
from filigree.compress.monte_carlo import MonteCarlo
from filigree.compress.one_shot.one_shot import OneShot
from filigree.compress.path_sampling import PathSampling
from filigree.compress.pruning import (
    Budget,
    ClusterPruning,
    MagnitudePruning,
    MaxError,
    RandomPruning,
    RetrainingBaseline,
    SubClustering,
    SubsetPruning,
    fit_gamma,
    net_deviation,
    retraining_bound,
)
from filigree.compress.resized import Resized
from filigree.compress.round_to_nearest import RoundToNearest

__all__ = [
    "Budget",
    "ClusterPruning",
    "Compression",
    "FitStructured",
    "MagnitudePruning",
    "MaxError",
    "MonteCarlo",
    "OneShot",
    "PathSampling",
    "RandomPruning",
    "Resized",
    "RetrainingBaseline",
    "RoundToNearest",
    "SubClustering",
    "SubsetPruning",
    "compress_",
    "fit_gamma",
    "net_deviation",
    "retraining_bound",
]
