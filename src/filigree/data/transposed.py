"""Tables whose samples stand in columns, as matrices of gene expression are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from filigree.config import listed
from filigree.data.columns import Columns
from filigree.data.dialects import Row, names_rows
from filigree.data.samples import Reading, Samples

_PREVIEW = 200  # rows


def read_transposed(rows: list[Row], delimiter: str, how: Reading, check: Callable[[int], None]) -> Samples:
    """The samples of a table's rows, cells without spaces around them: the first cell of each is its name.

    The first row is left out where it names the samples: where its cells differ, and are text or whole numbers.
    `check(size)` refuses what claims too much memory.
    """
    if all(row[-1] == "" for row in rows):  # each line ends with a delimiter
        rows = [row[:-1] for row in rows]
    width = len(rows[0])
    if wrong := next((i for i, row in enumerate(rows) if len(row) != width), None):
        raise ValueError(f"row {wrong + 1} has {len(rows[wrong])} columns where {width} were expected")
    names, wanted = rows[0], how.wanted
    known = {how.target} if wanted is None else {how.target, wanted.label, *wanted.names}
    note = "samples are taken from its columns"
    if names[0] not in known and names_rows(names[1:]):
        rows, note = rows[1:], f"{note}; its first row names them: {listed(names[1:])}"
    turned = [list(row) for row in zip(*rows, strict=True)]
    if len(turned) < 2 or len(rows) < 2:
        raise ValueError(f"of {len(rows)} rows and {width} columns, no samples can be taken from its columns")
    table = _filled(Columns(turned[:_PREVIEW], delimiter, how, named=True), turned)
    if wanted is not None:
        return table.rows_for_a_model(check)
    if table.words:  # again, to keep what these say
        table = _filled(Columns(turned[:_PREVIEW], delimiter, how, table.words, named=True), turned)
    samples = table.samples(check)
    return replace(samples, notes=(note, *samples.notes), sideways=False)


def _filled(table: Columns, rows: list[Row]) -> Columns:
    table.add(rows[1:])
    return table
