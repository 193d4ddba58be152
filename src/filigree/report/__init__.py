"""Records to tables and one self-contained page."""

from filigree.report.page import write_report
from filigree.report.table import Row, console_table, summary_table

__all__ = ["Row", "console_table", "summary_table", "write_report"]
