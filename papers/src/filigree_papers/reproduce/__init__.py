"""Published tables run again: one file a subject, with the printed numbers beside ours and a verdict on each."""

from filigree_papers.reproduce.bars import Bars
from filigree_papers.reproduce.catalogue import ALL
from filigree_papers.reproduce.check import check
from filigree_papers.reproduce.documents import all_documents
from filigree_papers.reproduce.everything import chosen, estimate, run_all, verdicts
from filigree_papers.reproduce.experiment import Request
from filigree_papers.reproduce.findings import Finding
from filigree_papers.reproduce.listing import FOLDERS, details, list_entries, newest_record, plain, tables, totals
from filigree_papers.reproduce.reproduction import Computation, Reproduction

__all__ = [
    "ALL",
    "FOLDERS",
    "Bars",
    "Computation",
    "Finding",
    "Reproduction",
    "Request",
    "all_documents",
    "check",
    "chosen",
    "details",
    "estimate",
    "list_entries",
    "newest_record",
    "plain",
    "run_all",
    "tables",
    "totals",
    "verdicts",
]
