"""Tables in plain text, and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row of cells, with the cells of a column under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


class Tabular:
    """Mixin of a result that prints as a table, and shows one in a notebook.

    Attributes:
        heading: a line above the table, or "".
    """

    heading = ""

    def table_rows(self) -> list[Sequence[str]]:
        """The cells, row by row."""
        raise NotImplementedError

    def table_notes(self) -> Sequence[str]:
        """Lines below the table."""
        return ()

    has_header = True
    """Whether the first row names the columns."""

    def __str__(self) -> str:
        above = [self.heading] if self.heading else []
        return "\n".join([*above, *aligned(self.table_rows()), *self.table_notes()])

    def _repr_html_(self) -> str:
        rows = self.table_rows()
        lines = [f"<b>{html.escape(self.heading)}</b>"] if self.heading else []
        lines.append("<table>")
        for number, row in enumerate(rows):
            kind = "th" if self.has_header and number == 0 else "td"
            cells = "".join(f'<{kind} style="text-align:left">{html.escape(str(cell))}</{kind}>' for cell in row)
            lines.append(f"<tr>{cells}</tr>")
        lines.append("</table>")
        return "\n".join([*lines, *(f"<p>{html.escape(note)}</p>" for note in self.table_notes())])
