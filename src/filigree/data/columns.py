"""The columns of a table while it is read: which one is the label, which only number the rows, which are no numbers."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from filigree.config import clipped, listed
from filigree.data.cells import MARKERS, is_number
from filigree.data.dialects import Row, as_point, has_header, names_rows
from filigree.data.encodings import Encoding
from filigree.data.samples import Reading, Samples, Wanted

_LABELS = {"label", "labels", "target", "class", "y"}  # names of columns that hold a label
_SIDEWAYS = 4  # as many rows a column, and the first column of identifiers: samples may stand in columns
SIDEWAYS = "If samples stand in columns, as in gene expression: transpose=True, on the command line --transpose."


class Columns:
    """The columns of a table while it is read: numbers but for the label's, those without a name, which may be an
    index of text, and those of words or dates that are known.

    Args:
        preview: the first rows. delimiter: what stands between the cells.
        words: the columns that an earlier reading found to be no numbers, with a cell that is none; their text is kept.
        named: that the first row holds names, where it is known.
    """

    def __init__(
        self, preview: list[Row], delimiter: str, how: Reading, words: dict[int, str] | None = None, named: bool = False
    ) -> None:
        self.delimiter, self.how = delimiter, how
        self.ends = all(row[-1] == "" for row in preview)  # each line ends with a delimiter
        rows = [row[:-1] for row in preview] if self.ends else preview
        self.named = named or _names_wanted(rows[0], how.wanted) or has_header(rows, delimiter, how.target)
        if self.ends and not self.named:  # then it is the label that is missing
            self.ends, rows = False, preview
        width = self.width = Counter(map(len, rows)).most_common(1)[0][0]
        header = rows[0] if self.named else [""] * width
        if len(header) != width:
            raise ValueError(f"its header has {len(header)} columns, its rows have {width}")
        self.unnamed = [i for i, name in enumerate(header) if self.named and _is_unnamed(name)]
        self.written = [" ".join(name.split()) or f"column {i + 1}" for i, name in enumerate(header)]
        self.names = _told_apart(self.written)
        if how.wanted is None:
            self.target: int | None = self._find(how.target, "target") if how.target is not None else self._last()
            left_out = {self._find(name, "drop") for name in how.drop}
            if self.target in left_out:
                raise ValueError(f"drop names the label, {self.names[self.target]}")
            self.unnamed = [i for i in self.unnamed if i not in left_out and i != self.target]
            self.columns = [i for i in range(width) if i not in left_out and i != self.target]
        else:
            self.columns, self.target, self.unnamed = *self._wanted(how.wanted), []
        self.rows = 0
        self.labels: list[str] = []
        self.encodings = (
            {self.names.index(e.name): e for e in how.wanted.encodings if e.name in self.names} if how.wanted else {}
        )
        self.texts: dict[int, list[str]] = {i: [] for i in (*self.unnamed, *(words or ()), *self.encodings)}
        self.blocks: list[np.ndarray] = []
        self.words = dict(words or {})  # of columns that are not numbers: the first cell that is none, and where
        self.markers: dict[str, Counter[str]] = {}
        self.points = {",": "", ".": ""}  # a number written with each

    def _find(self, name: str, argument: str) -> int:
        if (count := self.written.count(name)) == 1:
            return self.written.index(name)
        if not count and name in self.names:
            return self.names.index(name)
        if count:
            raise ValueError(f"{argument}: {count} columns are called {clipped(name)}")
        if not self.named and name.isdecimal() and 1 <= int(name) <= self.width:
            return int(name) - 1
        if not self.named:
            raise ValueError(
                f"{argument} must be the number of one of its {self.width} columns, from 1, as they have no names. "
                f"Got {clipped(name)}"
            )
        close = difflib.get_close_matches(name, self.names, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise ValueError(
            f"{argument}: there is no column {clipped(name)}. {hint}Its columns are {listed(self.names, 10)}"
        )

    def _wanted(self, wanted: Wanted) -> tuple[list[int], int | None]:
        """The columns that a model reads, in its order, and the label's, if there is one."""
        target = self.names.index(wanted.label) if self.named and wanted.label in self.names else None
        if self.how.target is not None:
            target = self._find(self.how.target, "target")
        if wanted.names and self.named:
            names = _told_apart(wanted.names)
            if absent := [name for name in names if name not in self.names]:
                close = difflib.get_close_matches(absent[0], self.names, n=1)
                hint = f" Did you mean that {close[0]} is {absent[0]}?" if close else ""
                raise ValueError(f"the model reads columns that it lacks: {listed(absent)}.{hint}")
            return [self.names.index(name) for name in names], target
        if target is None and wanted.count is not None and self.width == wanted.count + 1:
            target = self.width - 1
        columns = [i for i in range(self.width) if i != target]
        if wanted.count not in (None, len(columns)):
            called = f", {listed(wanted.names, 10)}" if wanted.names else ""
            raise ValueError(f"the model reads {wanted.count} columns{called}. It has {self.width}")
        return columns, target

    def _last(self) -> int:
        others = [name for name in self.names[:-1] if name.lower() in _LABELS]
        if self.named and others and self.names[-1].lower() not in _LABELS:
            raise ValueError(
                f"it is unclear which column is the label: the last one, {self.names[-1]}, or {others[0]}. Say which: "
                f"target={others[0]!r}, on the command line --target {others[0]}"
            )
        return self.width - 1

    # -- rows --------------------------------------------------------------------------------------------------------

    def add(self, block: list[Row]) -> None:
        for number, row in enumerate(block, self.rows + 1):
            if len(row) != self.width and not (self.ends and len(row) == self.width + 1 and row[-1].strip() == ""):
                raise ValueError(f"row {number} has {len(row)} columns where {self.width} were expected")
        if self.target is not None:
            cells_of_label = (row[self.target].strip() for row in block)
            number = self.how.task == "regression"
            self.labels += [as_point(cell, self.delimiter) if number else cell for cell in cells_of_label]
        for i, column in self.texts.items():
            column += [row[i].strip() for row in block]
        numeric = [i for i in self.columns if i not in self.texts]
        cells = [[row[i] for i in numeric] for row in block]
        written = "".join(map("".join, cells))
        try:
            if "_" in written:
                raise ValueError("Python would take 1_1 for 11")
            numbers = np.array([list(map(float, row)) for row in cells], np.float64)
            if np.isnan(numbers).any():
                raise ValueError("it says where a value is missing")
            if "." in written and not self.points["."]:
                self.points["."] = next(cell for row in cells for cell in row if "." in cell)
        except ValueError:  # cell by cell, to name what is wrong
            start = self.rows + 1
            numbers = np.array(
                [
                    [self._number(c, i, n) for i, c in zip(numeric, row, strict=True)]
                    for n, row in enumerate(cells, start)
                ]
            )
        self.blocks.append(numbers.reshape(len(block), len(numeric)))
        self.rows += len(block)

    def _number(self, cell: str, column: int, row: int) -> float:
        """A cell as a number, NaN where it is missing; what is neither is noted."""
        cell = cell.strip()
        if cell.lower() in MARKERS or cell.lower() in ("none", "-"):
            self.markers.setdefault(self.names[column], Counter())[cell] += 1
            return float("nan")
        text = as_point(cell, self.delimiter)
        if not is_number(text):
            self.words.setdefault(column, f"{clipped(cell[:40])} in row {row}")
            return float("nan")
        if text != cell or "." in cell:
            self.points["," if text != cell else "."] = cell
        return float(text)

    # -- the whole ---------------------------------------------------------------------------------------------------

    def rows_for_a_model(self, check: Callable[[int], None]) -> Samples:
        """Rows of the model's columns in its order; labels are as they are written, and "" where there is none."""
        if not self.rows:
            raise ValueError("it holds no rows below its header")
        self._refuse_text(self.columns)
        labels = self.labels or [""] * self.rows
        check(4 * max(map(len, labels)) * self.rows)
        names = tuple(self.names[i] for i in self.columns) if self.named else ()
        label = "" if self.target is None else self.names[self.target]
        x, notes = np.concatenate(self.blocks), tuple[str, ...]()
        if self.encodings:
            x, names = self._encoded(x, self.columns, [i for i in self.columns if i not in self.texts])
            notes = tuple(self._unknown())
        return Samples(x, np.array(labels), names, label, notes, tuple(self.encodings.values()))

    def _encoded(self, x: np.ndarray, columns: list[int], numeric: list[int]) -> tuple[np.ndarray, tuple[str, ...]]:
        """The features of some columns, and their names; x holds those that are numbers."""
        place = {column: k for k, column in enumerate(numeric)}
        parts, names = [], list[str]()
        for i in columns:
            encoding = self.encodings.get(i)
            parts.append(x[:, [place[i]]] if encoding is None else encoding(self.texts[i]))
            names += [self.names[i]] if encoding is None else encoding.features
        return np.concatenate(parts, 1), tuple(names)

    def _unknown(self) -> Iterator[str]:
        for i, encoding in self.encodings.items():
            if unknown := encoding.unknown(self.texts[i]):
                shown = listed([f"{value} {count}" for value, count in unknown.items()])
                yield f"column {encoding.name!r} holds categories that were not in the training, all 0: {shown}"

    def samples(self, check: Callable[[int], None]) -> Samples:
        if not self.rows:
            raise ValueError("it holds no rows below its header")
        notes = [f"its first line is taken for the columns' names, {listed(self.names)}"] if self._by_numbers() else []
        numeric = [i for i in self.columns if i not in self.texts]
        x = np.concatenate(self.blocks)
        index = [i for i in self.unnamed if names_rows(self.texts[i])]
        running = [i for k, i in enumerate(numeric) if _runs(x[:, k])]
        if len(running) + len(index) < len(self.columns):  # a lone feature is what there is to learn from
            index += running
        if self.how.index_column == "keep":
            index = []
        for i in index:
            name = f"column {i + 1}, without a name," if i in self.unnamed else f"column {self.names[i]!r}"
            notes.append(f"{name} only numbers the rows and is left out; index_column='keep' (--index-column) keeps it")
        for i in [i for i in self.words if i in self.texts and i not in index and self.named]:
            if (encoding := Encoding.of(self.names[i], self.texts[i])) is not None:
                self.encodings[i] = encoding
                del self.words[i]
                words = encoding.kind == "categories" and self.how.target is None and all(map(is_number, self.labels))
                hint = f"; if it is the label: target={encoding.name!r} (--target)" if words else ""
                notes.append(f"{encoding}{hint}")
        for i in self.texts:
            if i not in index and i not in self.encodings:
                x = np.insert(x, sum(j < i for j in numeric), self._numbers(i), axis=1)
                numeric = sorted([*numeric, i])
        kept = [k for k, i in enumerate(numeric) if i not in index]
        self._refuse_text([i for i in numeric if i not in index])
        if not kept and not self.encodings:
            raise ValueError("every row must hold numbers and a label. It holds no features")
        assert self.target is not None
        longest = max(map(len, self.labels))
        check(4 * longest * self.rows)  # numpy pads all labels to the longest
        counts = self.markers | {self.names[self.target]: Counter(c for c in self.labels if c.lower() in MARKERS)}
        x, features = x[:, kept], tuple(self.names[numeric[k]] for k in kept)
        if self.encodings:
            columns = [i for i in self.columns if i not in index]
            x, features = self._encoded(x, columns, [i for i in columns if i not in self.encodings])
        samples = replace(
            Samples.of(x, np.array(self.labels)), features=features, label=self.names[self.target], notes=tuple(notes),
            encodings=tuple(self.encodings.values()), sideways=self._looks_sideways(),
        )  # fmt: skip
        whole = samples.without_missing(self.how.missing, counts)
        return whole if self.named else replace(whole, features=())

    def _by_numbers(self) -> bool:
        return self.named and any(is_number(name) for name in self.names)

    def _numbers(self, column: int) -> np.ndarray:
        return np.array([self._number(cell, column, row) for row, cell in enumerate(self.texts[column], 1)])

    def _looks_sideways(self) -> bool:
        """Whether samples may stand in columns, as in matrices of gene expression."""
        first = self.texts.get(0, [])
        return self.rows >= _SIDEWAYS * self.width and len(set(first)) == self.rows and not any(map(is_number, first))

    def _refuse_text(self, columns: list[int]) -> None:
        words = [i for i in columns if i in self.words]
        if words:
            shown = listed([f"{self.names[i]} ({self.words[i]})" for i in words])
            name = self.names[words[0]] if self.named else str(words[0] + 1)
            or_label = f" If {name} is the label: target={name!r} (--target)." if self.how.target is None else ""
            count = "a column holds" if len(words) == 1 else f"{len(words)} columns hold"
            if self.how.wanted is not None:
                raise ValueError(f"{count} text, dates or the like where the model reads numbers: {shown}")
            sideways = words[0] == 0 and self._looks_sideways()
            if sideways and len(words) == len(columns) > 1:  # the label's row has put words into all of them
                raise ValueError(f"{count} text, dates or the like: {shown}. {SIDEWAYS}")
            raise ValueError(
                f"{count} text, dates or the like: {shown}. Put numbers in their place, or leave them out: "
                f"drop=[{name!r}], on the command line --drop {name}.{or_label}"
                + f" {SIDEWAYS}"
                * (sideways and len(words) == 1)
            )
        if self.points[","] and self.points["."]:
            raise ValueError(
                f"numbers are written with points and with commas, {self.points['.']} and {self.points[',']}"
            )


def _names_wanted(first: Row, wanted: Wanted | None) -> bool:
    """Whether a first row holds the name of a column that a model reads."""
    return wanted is not None and any(" ".join(cell.split()) in wanted.names for cell in first)


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names of which no two are alike: the second `a` is `a.1`, as pandas reads it."""
    apart: list[str] = []
    for name in names:
        others = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(1)))
        apart.append(next(other for other in others if other not in apart))
    return apart


def _is_unnamed(name: str) -> bool:
    return name == "" or name.startswith("Unnamed: ")  # so pandas calls a column without a name


def _runs(column: np.ndarray) -> bool:
    """Whether a column counts the rows: whole numbers, each one more than that before."""
    return len(column) > 2 and float(column[0]).is_integer() and bool((np.diff(column) == 1).all())
