"""Frames of pandas and polars, tables of Arrow, and the files that hold such: read as the .csv that they write."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filigree.config import one_line
from filigree.data.columns import Columns
from filigree.data.dialects import rows_of
from filigree.data.samples import Reading, Samples
from filigree.data.transposed import read_transposed
from filigree.optional import needed

BLOCK, PREVIEW = 1000, 200  # rows
ARROW = (".parquet", ".feather", ".arrow")


def is_frame(source: Any) -> bool:
    """Whether it is a `pandas.DataFrame`, a `polars.DataFrame` or a `pyarrow.Table`."""
    kind = type(source)
    return (kind.__module__.partition(".")[0], kind.__name__) in FRAMES


def read_frame(source: Any, how: Reading, name: str = "the frame") -> Samples:
    """The samples of a frame: its columns always have names; the index of a pandas frame is read only where samples
    stand in columns, and it names the rows."""
    kind = type(source)
    try:
        text = FRAMES[kind.__module__.partition(".")[0], kind.__name__](source, how.transpose)
    except ImportError:
        raise
    except Exception as error:  # of columns that hold lists and the like, in several kinds
        raise ValueError(f"data: {name} cannot be read ({one_line(error, 100)}).") from None

    def rows() -> Iterator[list[str]]:
        return rows_of(io.StringIO(text, newline=""), ",")

    try:
        if how.transpose:
            return read_transposed([[cell.strip() for cell in row] for row in rows()], ",", how, lambda size: None)
        first = [[cell.strip() for cell in row] for row in itertools.islice(rows(), PREVIEW)]
        if len(first) < 2:
            raise ValueError("it holds no rows")
        table = _read(Columns(first, ",", how, named=True), rows())
        if table.words and how.wanted is None:
            table = _read(Columns(first, ",", how, table.words, named=True), rows())
        return table.samples(lambda size: None) if how.wanted is None else table.rows_for_a_model(lambda size: None)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"data: {name}: {one_line(error, 2000).rstrip('.')}.") from None


def read_arrow(path: Path, how: Reading) -> Samples:
    """A file of Parquet or Feather (Arrow's IPC)."""
    module = "pyarrow.parquet" if path.suffix.lower() == ".parquet" else "pyarrow.feather"
    try:
        table = needed(module, f"data: reading {path.name}", "parquet").read_table(path)
    except ImportError:
        raise
    except Exception as error:  # Arrow's own, in several kinds
        raise ValueError(f"data: {path} cannot be read ({one_line(error, 100)}).") from None
    return read_frame(table, how, str(path))


def _read(table: Columns, rows: Iterator[list[str]]) -> Columns:
    next(rows)
    while block := list(itertools.islice(rows, BLOCK)):
        table.add(block)
    return table


def _text_of_arrow(table: Any, index: bool) -> str:
    sink = io.BytesIO()
    needed("pyarrow.csv", "data: a table of Arrow", "parquet").write_csv(table, sink)
    return sink.getvalue().decode()


def _counts(frame: Any) -> bool:
    """Whether the index of a pandas frame is the one that it gives by itself."""
    return type(frame.index).__name__ == "RangeIndex"


FRAMES = {
    ("pandas", "DataFrame"): lambda frame, index: frame.to_csv(index=index and not _counts(frame)),
    ("polars", "DataFrame"): lambda frame, index: frame.write_csv(),
    ("pyarrow", "Table"): _text_of_arrow,
}
