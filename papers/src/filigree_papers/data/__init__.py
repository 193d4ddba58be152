"""Data that only the papers' experiments need."""

from filigree.data.text import Text, characters, language_model_batches, words
from filigree_papers.data import tasks
from filigree_papers.data.captions import Captions, captions
from filigree_papers.data.parallel import Parallel, parallel, parallel_batches

__all__ = [
    "Captions",
    "Parallel",
    "Text",
    "captions",
    "characters",
    "language_model_batches",
    "parallel",
    "parallel_batches",
    "tasks",
    "words",
]
