"""What changes while a network trains."""

from filigree.dynamics.annealed_topk import AnnealedTopK
from filigree.dynamics.average import EMA, match_connections_
from filigree.dynamics.density import CubicDensity, DensitySchedule, LinearDensity, SigmoidDensity
from filigree.dynamics.dropout_annealing import DropoutAnnealing
from filigree.dynamics.error_feedback import ErrorFeedback
from filigree.dynamics.evolution import Evolution
from filigree.dynamics.gradient_noise import GradientNoise
from filigree.dynamics.mollification_annealing import MollificationAnnealing
from filigree.dynamics.noise_annealing import NoiseAnnealing
from filigree.dynamics.presets import CHT, EXD, LDV, OSV, SET, CHTs, RigL
from filigree.dynamics.rewiring import Rewiring
from filigree.dynamics.schedules import (
    Adaptive,
    Constant,
    CosineDecay,
    ExponentialDecay,
    LinearDecrease,
    Oscillation,
    Product,
    Schedule,
    Sequence,
    Static,
    Sum,
)
from filigree.dynamics.selection_schedule import SelectionSchedule

__all__ = [
    "CHT",
    "EMA",
    "EXD",
    "LDV",
    "OSV",
    "SET",
    "Adaptive",
    "AnnealedTopK",
    "CHTs",
    "Constant",
    "CosineDecay",
    "CubicDensity",
    "DensitySchedule",
    "DropoutAnnealing",
    "ErrorFeedback",
    "Evolution",
    "ExponentialDecay",
    "GradientNoise",
    "LinearDecrease",
    "LinearDensity",
    "MollificationAnnealing",
    "NoiseAnnealing",
    "Oscillation",
    "Product",
    "Rewiring",
    "RigL",
    "Schedule",
    "SelectionSchedule",
    "Sequence",
    "SigmoidDensity",
    "Static",
    "Sum",
    "match_connections_",
]
