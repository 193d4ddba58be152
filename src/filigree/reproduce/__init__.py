"""Published tables run again: one file a document, with the printed numbers beside ours."""

from filigree.reproduce import asymmetric
from filigree.reproduce.reproduction import Reproduction, run_again

ALL: dict[str, Reproduction] = {made.name: made for made in asymmetric.REPRODUCTIONS}

__all__ = ["ALL", "Reproduction", "run_again"]
