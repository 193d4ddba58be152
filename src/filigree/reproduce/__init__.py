"""Published tables run again: one file a document, with the printed numbers beside ours."""

from filigree.reproduce import asymmetric, structured
from filigree.reproduce.reproduction import Computation, Reproduction, run_again

ALL: dict[str, Reproduction | Computation] = {
    made.name: made for part in (asymmetric, structured) for made in part.REPRODUCTIONS
}

__all__ = ["ALL", "Computation", "Reproduction", "run_again"]
