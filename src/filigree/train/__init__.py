"""Training: the loop, early stopping, checkpoints, records and trackers."""

from filigree.train.evaluation import evaluate
from filigree.train.history import History
from filigree.train.loop import fit
from filigree.train.progress import progress_columns
from filigree.train.records import Record, find_records
from filigree.train.rng import seed_everything
from filigree.train.stepping import FitState, each_step
from filigree.train.stopping import EarlyStopping
from filigree.train.tracking import Tracking

__all__ = [
    "EarlyStopping",
    "FitState",
    "History",
    "Record",
    "Tracking",
    "each_step",
    "evaluate",
    "find_records",
    "fit",
    "progress_columns",
    "seed_everything",
]
