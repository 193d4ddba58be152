"""Records to tables and one self-contained page."""

from filigree.report.chart import Chart
from filigree.report.comparison import load_comparisons
from filigree.report.computed import cell_text, write_computed
from filigree.report.page import write_report
from filigree.report.site import write_site
from filigree.report.table import Row, console_table, refuse_incomparable, summary, summary_table

__all__ = [
    "Chart",
    "Row",
    "cell_text",
    "console_table",
    "load_comparisons",
    "refuse_incomparable",
    "summary",
    "summary_table",
    "write_computed",
    "write_report",
    "write_site",
]
