"""Published tables run again: one file a subject, with the printed numbers beside ours and a verdict on each."""

from filigree.reproduce.bars import Bars
from filigree.reproduce.catalogue import ALL
from filigree.reproduce.documents import all_documents
from filigree.reproduce.everything import chosen, estimate, run_all, verdicts
from filigree.reproduce.experiment import Asked
from filigree.reproduce.findings import Finding
from filigree.reproduce.listing import FOLDERS, list_entries, plain, tables, totals
from filigree.reproduce.reproduction import Computation, Reproduction

__all__ = [
    "ALL",
    "FOLDERS",
    "Asked",
    "Bars",
    "Computation",
    "Finding",
    "Reproduction",
    "all_documents",
    "chosen",
    "estimate",
    "list_entries",
    "plain",
    "run_all",
    "tables",
    "totals",
    "verdicts",
]
