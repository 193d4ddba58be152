"""What the first rows of a table say about it: what stands between its columns, and whether they have names."""

from __future__ import annotations

import csv
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from filigree.data.cells import MARKERS, is_number

DELIMITERS = (",", ";", "\t", "|")
Row = list[str]
_FEW = 5  # numbers, which increase by chance in one of 120 rows


def rows_of(lines: Iterator[str], delimiter: str) -> Iterator[Row]:
    """The rows of a table, cells without quotes; spaces after a cell are still there. `csv.Error`: bad quotes."""
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)


def preview_of(lines: Sequence[str], delimiter: str) -> list[Row]:
    """The rows of some lines, cells without spaces around them; bad quotes are taken as they are."""
    return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]


def delimiter_of(lines: Sequence[str], alone: bool = False) -> str:
    """The delimiter that gives rows of one length, and most numbers. `ValueError`: none gives two columns, and a column
    is not to be `alone`."""
    best, chosen = (0.0, 0.0, 0), ""
    for delimiter in DELIMITERS:
        rows = preview_of(lines, delimiter)
        width, rows_alike = Counter(map(len, rows)).most_common(1)[0]
        cells = [cell for row in rows for cell in row]
        numbers = sum(is_number(as_point(cell, delimiter)) for cell in cells)
        if width > 1 and (score := (rows_alike / len(rows), numbers / len(cells), width)) > best:
            best, chosen = score, delimiter
    if not chosen and alone:
        return DELIMITERS[0]
    if not chosen:
        raise ValueError("every row must hold numbers and a label, with commas, semicolons, tabs or | between")
    return chosen


def as_point(cell: str, delimiter: str) -> str:
    """A decimal comma as a point, where commas do not stand between columns."""
    return cell.replace(",", ".") if delimiter != "," and cell.count(",") == 1 and "." not in cell else cell


def has_header(rows: Sequence[Row], delimiter: str, target: str | None = None) -> bool:
    """Whether the first of these rows holds the columns' names.

    It does where it holds the target's name, or no numbers before its last cell. Names may be numbers: those that
    pandas gives (0, 1, 2, the column of the index without a name), and others that increase, such as years or
    wavelengths, below a last cell of text that is no row's label; a few of them, unless they are 0, 1, 2, only where
    one is far from all numbers of its column, since the row may be the only one of its class.
    """
    first, below = rows[0], rows[1:]
    *names, last = first
    if target in first and not is_number(target or ""):
        return True
    numbers = [float(cell) for cell in (as_point(name, delimiter) for name in names) if is_number(cell)]
    if not any(names):
        return False  # a row without values, or a table without features
    if not numbers and not any(name.lower() in MARKERS - {""} for name in names):
        return True
    if last.lower() in MARKERS:
        return False  # a row that lacks its label
    labels = [row[-1] for row in below if row[-1].lower() not in MARKERS]
    is_class = last in labels or len(set(labels)) == len(labels)  # of one row each, as this one may be
    has_index = first[0] == "" and names_rows([row[0] for row in below])
    if not is_number(last):
        if is_class or len(numbers) < 2 - has_index or any(a >= b for a, b in itertools.pairwise(numbers)):
            return False
        running = names == [str(i) for i in range(len(names))]
        few = len(numbers) <= _FEW and not has_index and not running
        return not few or any(is_far(i, rows, delimiter) for i in range(len(names)))
    counted = first[1:] if has_index else first
    if len(counted) < 2 or counted != [str(i) for i in range(len(counted))]:
        return False
    fractions = any("." in as_point(cell, delimiter) for row in below for cell in row[:-1])
    return has_index or len(counted) > 2 or fractions or not is_class


def is_far(column: int, rows: Sequence[Row], delimiter: str) -> bool:
    """Whether the first row has a number there that is farther from all below than those are from each other."""
    first, *below = (as_point(row[column], delimiter) for row in rows if column < len(row))
    numbers = [float(cell) for cell in below if is_number(cell) and math.isfinite(float(cell))]
    if not is_number(first) or not numbers:
        return is_number(first)
    least, most = min(numbers), max(numbers)
    return not 2 * least - most <= float(first) <= 2 * most - least


def names_rows(cells: list[str]) -> bool:
    """Whether a column without a name says which row it is: all its cells differ, and are whole numbers or text."""
    whole = all(cell.isdecimal() for cell in cells)
    return len(set(cells)) == len(cells) and (whole or not any(map(is_number, cells)))
