"""filigree: neural networks that cost what they use."""

from filigree import data, models, nn, ops, topology
from filigree.convert import convert_
from filigree.cost import measure
from filigree.dynamics import (
    Adaptive,
    Constant,
    Evolution,
    ExponentialDecay,
    Fixed,
    LinearDecrease,
    Oscillation,
    Sequence,
)
from filigree.nn import Sparse
from filigree.saving import load, save
from filigree.topology import ErdosRenyi

__all__ = [
    "Adaptive",
    "Constant",
    "ErdosRenyi",
    "Evolution",
    "ExponentialDecay",
    "Fixed",
    "LinearDecrease",
    "Oscillation",
    "Sequence",
    "Sparse",
    "convert_",
    "data",
    "load",
    "measure",
    "models",
    "nn",
    "ops",
    "save",
    "topology",
]
