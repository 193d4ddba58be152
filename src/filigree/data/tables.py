"""Tables in text (.csv, .tsv, packed or not): rows of numbers and a label, as spreadsheets and pandas write them."""

from __future__ import annotations

import csv
import gzip
import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from filigree.config import one_line
from filigree.data.columns import Columns
from filigree.data.dialects import delimiter_of, preview_of, rows_of
from filigree.data.samples import Reading, Samples
from filigree.data.transposed import read_transposed

_BLOCK = 1000  # rows that are converted together
_PREVIEW = 256 << 10  # characters that tell the dialect
_SNIFFED = 100  # lines that tell the delimiter, where samples stand in columns
_LONGEST = 64 << 20  # characters of a line


def read_table(path: Path, how: Reading, check_unpacked: Callable[[Path, int], None]) -> Samples:
    """A table with one label a row: by default its last column, else `how.target`.

    What stands between the columns and whether the first line holds their names is found out (`dialects.py`). Empty
    lines and lines that begin with # are left out. With `how.wanted`, values may be missing.
    `check_unpacked(path, size)` refuses what claims too much memory.
    """

    def claim(size: int) -> None:
        check_unpacked(path, size)

    try:
        if how.transpose:
            with _open(path) as file:
                lines = [*_lines(file, claim)]
            delimiter = delimiter_of(lines[:_SNIFFED] or [""])
            rows = [[cell.strip() for cell in row] for row in rows_of(iter(lines), delimiter)]
            return read_transposed(rows, delimiter, how, claim)
        with _open(path) as file:
            table = _read(_lines(file, claim), how)
        if table.words and table.named and how.wanted is None:  # again, to keep what these columns say
            with _open(path) as file:
                table = _read(_lines(file, claim), how, table.words)
        return table.samples(claim) if how.wanted is None else table.rows_for_a_model(claim)
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {path} is no text in UTF-8 ({error.reason}, byte {error.start}).") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise ValueError(f"data: {path} is no table of numbers ({one_line(error, 100)}).") from None
    except ValueError as error:
        raise ValueError(f"data: {path}: {one_line(error, 2000).rstrip('.')}.") from None


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")  # spreadsheets begin with a mark


def _lines(file: IO[str], check: Callable[[int], None]) -> Iterator[str]:
    size = 0
    while line := file.readline(_LONGEST):
        if (size + len(line)) >> 20 > size >> 20:
            check(size + len(line))
        size += len(line)
        if len(line) == _LONGEST:
            raise ValueError(f"a line of more than {_LONGEST:,} characters")
        if line.strip(" \r\n") and not line.startswith("#"):
            yield line


def _read(lines: Iterator[str], how: Reading, words: dict[int, str] | None = None) -> Columns:
    preview, size = [], 0
    for line in lines:
        preview.append(line)
        size += len(line)
        if size > _PREVIEW and len(preview) > 2:
            break
    if not preview:
        raise ValueError("it is empty")
    delimiter = delimiter_of(preview, alone=how.wanted is not None)  # one feature, without a label
    table = Columns(preview_of(preview, delimiter), delimiter, how, words)
    rows = rows_of(itertools.chain(preview, lines), delimiter)
    if table.named:
        next(rows)
    while block := list(itertools.islice(rows, _BLOCK)):
        table.add(block)
    return table
