"""Computed rows as one self-contained page: a table, and charts of its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from filigree.report import figures
from filigree.report.chart import Chart
from filigree.report.page import Figures, write_page

Rows = Sequence[Mapping[str, Any]]


def cell_text(value: Any) -> str:
    """A cell: `[mean, deviation]` with a plus-minus, floats to four digits, mappings as their keys and cells."""
    match value:
        case [int() | float() as mean, int() | float() as deviation]:
            return f"{mean:.4g} ± {deviation:.2g}"
        case Mapping():
            return ", ".join(f"{key} {cell_text(item)}" for key, item in value.items())
        case float():
            return f"{value:.4g}"
    return "-" if value is None else str(value)


def _cells(texts: Sequence[str]) -> list[str]:
    named = [f"<th scope=row>{escape(text)}</th>" for text in texts[:1]]
    return named + [f"<td>{escape(text)}</td>" for text in texts[1:]]


def rows_table(rows: Rows) -> str:
    """Rows as an HTML table, a column a key; the first names the row."""
    headings = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th scope=col>{escape(h).replace('_', '_<wbr>')}</th>" for h in headings)
    body = "".join(f"<tr>{''.join(_cells([cell_text(row.get(h)) for h in headings]))}</tr>" for row in rows)
    scroll = '<div class=scroll tabindex=0 role=region aria-label="Results">'
    scroll += f"<table style='--columns:{len(headings)}'>"
    return f"{scroll}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def write_computed(
    path: Path, name: str, about: str, rows: Rows, charts: Sequence[Chart] = (), lines: Sequence[str] = ()
) -> None:
    """Write `path`: the rows, their charts, and a line on each claim."""
    numbered = Figures()
    drawn = "".join(numbered.place(figures.lines(rows, chart), chart.title) for chart in charts)
    write_page(
        path, name,
        f"<p>{escape(about)}</p><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        f"{drawn}{rows_table(rows)}", numbered,
    )  # fmt: skip
