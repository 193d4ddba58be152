"""Synthetic tasks: tensors as a function of sizes and a seed."""

from filigree_papers.data.tasks.associative_recall import associative_recall
from filigree_papers.data.tasks.gaussians import gaussians
from filigree_papers.data.tasks.parity import parity
from filigree_papers.data.tasks.pentomino import pentomino
from filigree_papers.data.tasks.programs import CHARACTERS, encode, programs
from filigree_papers.data.tasks.translation import SOURCE_WORDS, TARGET_WORDS, translation
from filigree_papers.data.tasks.unique_elements import unique_elements

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
