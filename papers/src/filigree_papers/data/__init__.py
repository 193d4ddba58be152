"""Data that only the papers' experiments need."""

from filigree_papers.data import tasks
from filigree_papers.data.captions import Captions, captions
from filigree_papers.data.parallel import Parallel, parallel, parallel_batches

__all__ = [
    "Captions",
    "Parallel",
    "captions",
    "parallel",
    "parallel_batches",
    "tasks",
]
