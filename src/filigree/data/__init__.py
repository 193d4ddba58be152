"""Data sets in tensors, with checksums; nothing is read before it is asked for."""

from filigree.data import tasks
from filigree.data.augment import Augment
from filigree.data.captions import Captions, captions
from filigree.data.dataset import DataSet, Split, check
from filigree.data.intervals import mean_interval, overlap, paired_interval
from filigree.data.parallel import Parallel, parallel, parallel_batches
from filigree.data.readers import SUFFIXES
from filigree.data.sets import cross_validation, describe, load, names
from filigree.data.text import Text, characters, language_model_batches, words

__all__ = [
    "SUFFIXES",
    "Augment",
    "Captions",
    "DataSet",
    "Parallel",
    "Split",
    "Text",
    "captions",
    "characters",
    "check",
    "cross_validation",
    "describe",
    "language_model_batches",
    "load",
    "mean_interval",
    "names",
    "overlap",
    "paired_interval",
    "parallel",
    "parallel_batches",
    "tasks",
    "words",
]
