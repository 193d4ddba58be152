"""Published tables run again: one file a document, with the printed numbers beside ours."""

from filigree.reproduce import asymmetric, mollify, noise, pruning, sampling, structured, translating
from filigree.reproduce.reproduction import Asked, Computation, Reproduction

ALL: dict[str, Reproduction | Computation] = {
    made.name: made
    for part in (asymmetric, structured, sampling, pruning, noise, mollify, translating)
    for made in part.REPRODUCTIONS
}

__all__ = ["ALL", "Asked", "Computation", "Reproduction"]
