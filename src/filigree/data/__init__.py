"""Data sets in tensors, with checksums; a set is read when it is loaded."""

from filigree.data.augment import Augment
from filigree.data.dataset import DataSet, Split, check
from filigree.data.intervals import mean_interval, overlap, paired_interval
from filigree.data.preprocessing import Preprocessing
from filigree.data.readers import SUFFIXES
from filigree.data.rows import Rows, read_rows
from filigree.data.sets import cross_validation, describe, load, names
from filigree.data.text import load_text
from filigree.data.vocabulary import Vocabulary

__all__ = [
    "SUFFIXES",
    "Augment",
    "DataSet",
    "Preprocessing",
    "Rows",
    "Split",
    "Vocabulary",
    "check",
    "cross_validation",
    "describe",
    "load",
    "load_text",
    "mean_interval",
    "names",
    "overlap",
    "paired_interval",
    "read_rows",
]
