"""Synthetic tasks: tensors as a function of sizes and a seed."""

from filigree.data.tasks.associative_recall import associative_recall
from filigree.data.tasks.gaussians import gaussians
from filigree.data.tasks.parity import parity
from filigree.data.tasks.pentomino import pentomino
from filigree.data.tasks.programs import CHARACTERS, encode, programs
from filigree.data.tasks.translation import SOURCE_WORDS, TARGET_WORDS, translation
from filigree.data.tasks.unique_elements import unique_elements

__all__ = [
    "CHARACTERS",
    "SOURCE_WORDS",
    "TARGET_WORDS",
    "associative_recall",
    "encode",
    "gaussians",
    "parity",
    "pentomino",
    "programs",
    "translation",
    "unique_elements",
]
