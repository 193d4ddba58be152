"""All reproductions by their names."""

from filigree_papers.reproduce import (
    asymmetric,
    evolving,
    mollify,
    noise,
    paths,
    pruning,
    retraining,
    sampling,
    sequences,
    structured,
    subclustering,
    translating,
)
from filigree_papers.reproduce.reproduction import Computation, Reproduction

PARTS = (
    asymmetric, evolving, sampling, paths, pruning, subclustering, retraining, structured, noise, sequences, mollify,
    translating,
)  # fmt: skip

ALL: dict[str, Reproduction | Computation] = {made.name: made for part in PARTS for made in part.REPRODUCTIONS}
