"""What changes while a network trains."""

from filigree.dynamics.dropout_annealing import DropoutAnnealing
from filigree.dynamics.error_feedback import ErrorFeedback
from filigree.dynamics.evolution import Evolution
from filigree.dynamics.schedules import (
    Adaptive,
    Constant,
    ExponentialDecay,
    Fixed,
    LinearDecrease,
    Oscillation,
    Product,
    Schedule,
    Sequence,
    Sum,
)
from filigree.dynamics.selection_schedule import SelectionSchedule

__all__ = [
    "Adaptive",
    "Constant",
    "DropoutAnnealing",
    "ErrorFeedback",
    "Evolution",
    "ExponentialDecay",
    "Fixed",
    "LinearDecrease",
    "Oscillation",
    "Product",
    "Schedule",
    "SelectionSchedule",
    "Sequence",
    "Sum",
]
