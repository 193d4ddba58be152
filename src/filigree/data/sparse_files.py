"""Readers of files whose samples are sparse rows: archives of `scipy.sparse.save_npz`, and text in svmlight's format.

Nothing is made dense: `Samples.x` is a matrix of scipy in CSR form.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # its parts load at their first use

from filigree.config import clipped, one_line
from filigree.data.cells import is_number
from filigree.data.samples import Reading, Samples

SVMLIGHT = (".svmlight", ".libsvm", ".svm", ".svmlight.gz", ".libsvm.gz", ".svm.gz")
_COMPRESSED = {"csr": "csr_matrix", "csc": "csc_matrix", "bsr": "bsr_matrix"}
_LAST = 2**31 - 1  # feature
_COLUMN = re.compile(r"column (\d+)")
Array = Callable[[str], np.ndarray]  # of an archive, by its name


class TargetError(ValueError):
    """The labels of a sparse matrix are not named, or not there."""


def matrix_of(array: Array, present: set[str]) -> Any:
    """The matrix of an archive that `scipy.sparse.save_npz` wrote, in CSR form. `ValueError`: it is damaged."""
    kind = array("format").item()
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    shape = tuple(int(side) for side in array("shape"))
    if len(shape) != 2 or min(shape) < 0:
        raise ValueError(f"its matrix has the shape {shape}")
    if kind in _COMPRESSED:
        matrix = getattr(scipy.sparse, _COMPRESSED[kind])(
            (array("data"), array("indices"), array("indptr")), shape=shape
        )
        matrix.check_format(full_check=True)
    elif kind == "coo":
        if "coords" in present:
            rows, columns = array("coords")
        else:
            rows, columns = array("row"), array("col")
        matrix = scipy.sparse.coo_matrix((array("data"), (rows, columns)), shape=shape)
    else:
        raise ValueError(f"its format is {clipped(kind)}, of csr, csc, bsr and coo one is expected")
    return _canonical(matrix.tocsr())


def sparse_samples(path: Path, array: Array, present: set[str], how: Reading) -> Samples:
    """The samples of such an archive, and labels: an array `y` in it, or what `target` says: a column's number from 1,
    or a file with a label for each row (.npy, or text, one a line)."""
    matrix = matrix_of(array, present)
    if how.transpose:
        matrix = _canonical(matrix.T.tocsr())
    name = next((name for name in ("y", "Y") if name in present), None)
    wanted = how.wanted
    target = how.target
    if target is None and wanted is not None and (known := _COLUMN.fullmatch(wanted.label)):
        target = known[1] if wanted.count is not None and matrix.shape[1] == wanted.count + 1 else None
    if target is not None and target.isdigit():
        column = int(target)
        if not 1 <= column <= matrix.shape[1]:
            raise TargetError(f"target must be a column from 1 to {matrix.shape[1]}. Got {column}")
        labels, label = matrix[:, column - 1].toarray().ravel(), f"column {column}"
        kept = np.delete(np.arange(matrix.shape[1]), column - 1)
        matrix = _canonical(matrix[:, kept].tocsr())
    elif target is not None:
        labels, label = _labels_of(path, target), Path(target).stem
    elif name is not None:
        labels, label = array(name), name
    elif wanted is not None:
        labels, label = np.full(matrix.shape[0], ""), wanted.label
    else:
        raise TargetError(
            "a sparse matrix has no labels of its own. Name them by target (--target): a file with one for each row "
            "(.npy, or text, one a line), or the number of a column"
        )
    return _named(Samples.of(matrix, labels), label)


def read_svmlight(path: Path, how: Reading, check_unpacked: Callable[[Path, int], None]) -> Samples:
    """Lines `label index:value index:value ... # comment`, as of svmlight and libsvm; `qid:` is left out.

    Indices count from 1, or from 0 where one is 0. For a model, the samples have as many features as it reads.
    """
    if how.target is not None or how.drop or how.transpose:
        given = "target" if how.target is not None else "drop" if how.drop else "transpose"
        raise ValueError(f"data: {path}: {given} is for tables: in svmlight's format each line begins with its label.")
    try:
        labels, matrix, first = _parsed(_text(path, check_unpacked), how)
        samples = Samples.of(matrix, labels)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"data: {path} cannot be read as svmlight's format: {error}.") from None
    note = () if first else ("features count from 0, as one is numbered so",)
    return _named(samples, "y", *note, first=first)


def _text(path: Path, check_unpacked: Callable[[Path, int], None]) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    with gzip.open(path) as file:
        parts, size = [], 0
        while part := file.read(1 << 22):
            size += len(part)
            check_unpacked(path, size)
            parts.append(part)
    return b"".join(parts)


def _parsed(text: bytes, how: Reading) -> tuple[np.ndarray, Any, int]:
    labels, counts, pairs = [], [], []
    for number, line in enumerate(text.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        words = line.partition(b"#")[0].split()
        if not words:
            continue
        head = words[0].decode("utf-8", "replace")
        if not is_number(head):
            raise ValueError(f"line {number} must begin with a label, a number. Got {clipped(head)}")
        own = [word for word in words[1:] if not word.startswith(b"qid:")]
        if any(word.count(b":") != 1 for word in own):
            wrong = next(word for word in own if word.count(b":") != 1)
            raise ValueError(f"line {number} must hold index:value. Got {clipped(wrong.decode('utf-8', 'replace'))}")
        labels.append(head)
        counts.append(len(own))
        pairs += own
    if not labels:
        raise ValueError("it holds no line with a label")
    try:
        numbers = np.array(b":".join(pairs).split(b":") if pairs else [], dtype=bytes).reshape(-1, 2)
        columns, values = numbers[:, 0].astype(np.int64), numbers[:, 1].astype(np.float64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"an index or a value is no number ({error})") from None
    if (columns < 0).any():
        raise ValueError(f"an index is {int(columns.min())}, below 0")
    if columns.max(initial=0) > _LAST:
        raise ValueError(f"an index is {int(columns.max())}, above {_LAST}")
    wanted = how.wanted
    first = int(not (columns == 0).any()) if wanted is None or wanted.first is None else wanted.first
    columns -= first
    if (columns < 0).any():
        raise ValueError("an index is 0, and the model's training counted from 1")
    width = int(columns.max(initial=-1)) + 1
    if wanted is not None and wanted.count is not None:
        width = max(width, wanted.count)
    ends = np.concatenate([[0], np.cumsum(counts)])
    return np.array(labels), _canonical(scipy.sparse.csr_matrix((values, columns, ends), (len(labels), width))), first


def _labels_of(path: Path, target: str) -> np.ndarray:
    """The labels of a file beside the samples'; its name is taken from here, or from where the samples are."""
    file = next((each for each in (Path(target), path.parent / target) if each.is_file()), None)
    if file is None:
        raise TargetError(f"target {clipped(target)} is no number of a column, and no file with labels")
    try:
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)
        return np.array([line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().splitlines()])
    except (OSError, EOFError, ValueError) as error:
        raise TargetError(f"target {clipped(str(file))} cannot be read ({one_line(error, 100)})") from None


def _canonical(matrix: Any) -> Any:
    matrix.sum_duplicates()
    return matrix


def _named(samples: Samples, label: str, *notes: str, first: int | None = None) -> Samples:
    density = samples.x.nnz / max(1, samples.x.shape[0] * samples.x.shape[1])
    line = f"sparse rows, {samples.x.nnz:,} numbers that are not 0 ({100 * density:.3g}%); they stay sparse"
    return samples.renamed(label, (line, *notes), first)
