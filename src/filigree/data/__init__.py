"""Data sets in tensors, with checksums; nothing is read before it is asked for."""

from filigree.data.augment import Augment
from filigree.data.dataset import DataSet, Split, check
from filigree.data.intervals import paired_interval
from filigree.data.sets import cross_validation, describe, load, names

__all__ = ["Augment", "DataSet", "Split", "check", "cross_validation", "describe", "load", "names", "paired_interval"]
