"""filigree: neural networks that cost what they use."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import filigree.torch_version  # noqa: F401 - first of all: with an old torch other imports fail
from filigree import data, models, nn, ops, topology
from filigree.advise import advise
from filigree.analyze import analyze, connection_survival, feature_ranking
from filigree.compress import (
    Budget,
    ClusterPruning,
    FitStructured,
    MagnitudePruning,
    MaxError,
    MonteCarlo,
    OneShot,
    PathSampling,
    RandomPruning,
    RetrainingBaseline,
    RoundToNearest,
    SubClustering,
    SubsetPruning,
    fit_gamma,
    net_deviation,
    retraining_bound,
)
from filigree.compress.compression import compress_
from filigree.convert import convert_
from filigree.dynamics import (
    CHT,
    EMA,
    EXD,
    LDV,
    OSV,
    SET,
    Adaptive,
    AnnealedTopK,
    CHTs,
    Constant,
    CosineDecay,
    CubicDensity,
    DropoutAnnealing,
    ErrorFeedback,
    Evolution,
    ExponentialDecay,
    GradientNoise,
    LinearDecrease,
    LinearDensity,
    MollificationAnnealing,
    NoiseAnnealing,
    Oscillation,
    RigL,
    SelectionSchedule,
    Sequence,
    SigmoidDensity,
    Static,
    match_connections_,
)
from filigree.export import export
from filigree.io.saving import load, save
from filigree.measure.cost import measure
from filigree.nn import track_usage
from filigree.nn.asymmetric.asymmetric import Asymmetric
from filigree.nn.asymmetric.sparsification import (
    ColumnRowSampling,
    CustomSparsification,
    RandomK,
    Threshold,
    TopK,
    UnscaledDropout,
)
from filigree.nn.dropout.dropout import Dropout
from filigree.nn.dropout.dropout_variants import GaussianDropout, GuidedDropout
from filigree.nn.dropout.partition_dropout import PartitionDropout
from filigree.nn.mollified.mollified import Mollified
from filigree.nn.mollified.stochastic_depth import StochasticDepth
from filigree.nn.noisy.noisy import Noisy, NoisyRectifier
from filigree.nn.sparse.online_paths import OnlinePaths
from filigree.nn.sparse.sharding import shard_
from filigree.nn.sparse.sparse import Sparse
from filigree.nn.structured.low_rank import LowRank
from filigree.nn.structured.structured import ACDC, AFDF, PHD, Circulant, Fastfood, FuseLinears, Toeplitz
from filigree.notebook import load_ipython_extension as load_ipython_extension
from filigree.notebook import show
from filigree.notebook import unload_ipython_extension as unload_ipython_extension
from filigree.optimize.optimization import optimize_
from filigree.shrink.shrinking import shrink
from filigree.topology import ConstantFanIn, ErdosRenyi, ErdosRenyiKernel, Paths
from filigree.train import EarlyStopping, Record, each_step, evaluate, fit, seed_everything

if TYPE_CHECKING:
    from filigree import plot as plot
    from filigree import report as report
    from filigree import sklearn as sklearn
    from filigree.report import write_report


class _ModuleOfAFunction(ModuleType):
    """`fg.convert` and `fg.compress` are modules; who calls one of them is told of the function."""

    def __call__(self, *arguments: Any, **named: Any) -> NoReturn:
        name = self.__name__.rpartition(".")[2]
        raise TypeError(f"fg.{name} is a module. Call fg.{name}_, which changes the model in place and says how.")


for _module in [value for name, value in globals().items() if f"{name}_" in globals()]:
    _module.__class__ = _ModuleOfAFunction


_WHEN_USED = ("plot", "report", "sklearn")  # they bring rich, and scikit-learn with threads of its own


def __getattr__(name: str) -> Any:
    if name in _WHEN_USED:
        return importlib.import_module(f"filigree.{name}")
    if name == "write_report":
        return importlib.import_module("filigree.report").write_report
    raise AttributeError(f"module 'filigree' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_WHEN_USED})


__all__ = [
    "ACDC",
    "AFDF",
    "CHT",
    "EMA",
    "EXD",
    "LDV",
    "OSV",
    "PHD",
    "SET",
    "Adaptive",
    "AnnealedTopK",
    "Asymmetric",
    "Budget",
    "CHTs",
    "Circulant",
    "ClusterPruning",
    "ColumnRowSampling",
    "Constant",
    "ConstantFanIn",
    "CosineDecay",
    "CubicDensity",
    "CustomSparsification",
    "Dropout",
    "DropoutAnnealing",
    "EarlyStopping",
    "ErdosRenyi",
    "ErdosRenyiKernel",
    "ErrorFeedback",
    "Evolution",
    "ExponentialDecay",
    "Fastfood",
    "FitStructured",
    "FuseLinears",
    "GaussianDropout",
    "GradientNoise",
    "GuidedDropout",
    "LinearDecrease",
    "LinearDensity",
    "LowRank",
    "MagnitudePruning",
    "MaxError",
    "MollificationAnnealing",
    "Mollified",
    "MonteCarlo",
    "NoiseAnnealing",
    "Noisy",
    "NoisyRectifier",
    "OneShot",
    "OnlinePaths",
    "Oscillation",
    "PartitionDropout",
    "PathSampling",
    "Paths",
    "RandomK",
    "RandomPruning",
    "Record",
    "RetrainingBaseline",
    "RigL",
    "RoundToNearest",
    "SelectionSchedule",
    "Sequence",
    "SigmoidDensity",
    "Sparse",
    "Static",
    "StochasticDepth",
    "SubClustering",
    "SubsetPruning",
    "Threshold",
    "Toeplitz",
    "TopK",
    "UnscaledDropout",
    "advise",
    "analyze",
    "compress_",
    "connection_survival",
    "convert_",
    "data",
    "each_step",
    "evaluate",
    "export",
    "feature_ranking",
    "fit",
    "fit_gamma",
    "load",
    "match_connections_",
    "measure",
    "models",
    "net_deviation",
    "nn",
    "ops",
    "optimize_",
    "retraining_bound",
    "save",
    "seed_everything",
    "shard_",
    "show",
    "shrink",
    "topology",
    "track_usage",
    "write_report",
]
