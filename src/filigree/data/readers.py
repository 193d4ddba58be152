"""Readers of the files' formats. What a header claims is checked against the file before memory is taken for it.

Nothing pickled is read. Anything unexpected raises an error of one line.
"""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from filigree.config import one_line
from filigree.data.matlab import read_matrices

_DEFLATE = 1040  # no deflated stream unpacks to more than about 1032 times its size
_NUMBERS, _LABELS = "biuf", "biufSU"  # kinds of numpy's types


def check_unpacked(path: Path, claimed: int) -> None:
    """`ValueError` where a file claims to hold more than it can, or far more than it should (a bomb)."""
    size = path.stat().st_size
    limit = min(_DEFLATE * size, max(1 << 30, 100 * size))
    if claimed > limit:
        raise ValueError(f"{size:,} bytes claim to hold {claimed:,}, more than {limit:,} are not taken")


def read_idx(path: Path) -> np.ndarray:
    """A gzipped idx file of unsigned bytes (the format of MNIST): magic, sizes as big-endian int32, bytes."""
    try:
        with gzip.open(path) as file:
            head = file.read(4)
            sides = head[3] if len(head) == 4 and head[:3] == b"\0\0\x08" else 0
            if not 1 <= sides <= 4:
                raise ValueError("no idx file of unsigned bytes")
            shape = tuple(int.from_bytes(file.read(4), "big") for _ in range(sides))
            expected = math.prod(shape)
            check_unpacked(path, expected)
            content = file.read(expected + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"data: {path} cannot be read: {error}.") from None
    if len(content) != expected:
        raise ValueError(
            f"data: {path} cannot be read: its header says {expected:,} bytes, {len(content):,} are there."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's binary layout: rows of a label byte and 3 x 32 x 32 pixel bytes. Images `(n, 3, 32, 32)`, labels."""
    size = path.stat().st_size
    if not size or size % 3073:
        raise ValueError(f"data: {path} cannot be read: expected rows of 3,073 bytes, got {size:,} bytes in all.")
    rows = np.fromfile(path, np.uint8).reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A MATLAB file (versions 5 to 7.2) with numbers `X` (samples x features) and `Y` (labels)."""
    try:
        content = read_matrices(path, ("X", "Y"), check_unpacked)
        return _samples(content["X"], content["Y"])
    except KeyError as error:
        raise ValueError(f"data: {path} must hold X and Y. {error} is missing.") from None
    except (OSError, ValueError, zlib.error) as error:
        raise ValueError(f"data: {path} is no MATLAB file that can be read ({_brief(error)}).") from None


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A numpy archive with `x` and `y`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _samples(npz_array(archive, "x"), npz_array(archive, "y"))
    except KeyError:
        raise ValueError(f"data: {path} must hold arrays x and y.") from None
    except Exception as error:  # zipfile's reader fails in many ways on a damaged file
        raise ValueError(f"data: {path} is no .npz file that can be read ({_brief(error)}).") from None


def npz_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of numbers or strings of a .npz file. `KeyError`: it is not there; damaged files fail in many ways."""
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise KeyError(name) from None
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in another way than numpy's")
    check_unpacked(Path(str(archive.filename)), entry.file_size)
    with archive.open(entry) as file:
        if (version := np.lib.format.read_magic(file)) != (1, 0):  # the others are for structured types
            raise ValueError(f"{name} is an array of version {version}, 1.0 was expected")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        claimed, there = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"Object arrays are pickled, and not read; {name} is one")
    if dtype.kind not in _LABELS or not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"{name} is an array {shape} of {dtype}, where numbers or labels were expected")
    if claimed != there:
        raise ValueError(f"the header of {name} says {claimed:,} bytes, {there:,} are there")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Comma-separated numbers, the label in the last column; a first line without numbers is a header, and so is one of
    the columns' own numbers, 0, 1, 2, as pandas writes it.

    Empty lines and lines that begin with # are left out.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:  # spreadsheets begin with a mark
            lines = [line for line in (line.strip(" \r\n") for line in file) if line and not line.startswith("#")]
        if lines and _is_header(lines[0].split(",")):
            del lines[0]
        rows = [line.rpartition(",") for line in lines]
        if not rows or not all(numbers for numbers, _, _ in rows):
            raise ValueError("every line must hold numbers and a label")
        longest = max(len(label) for _, _, label in rows)
        check_unpacked(path, 4 * longest * len(rows))  # numpy pads all labels to the longest
        x = np.loadtxt([numbers for numbers, _, _ in rows], comments=None, delimiter=",", ndmin=2)
        return _samples(x, np.array([label.strip() for _, _, label in rows]))
    except (OSError, ValueError) as error:
        raise ValueError(f"data: {path} is no table of numbers ({_brief(error)}).") from None


def _is_header(cells: list[str]) -> bool:
    *names, label = (cell.strip() for cell in cells)
    counted = len(names) > 1 and names == [str(i) for i in range(len(names))] and not _is_number(label)
    return counted or not any(map(_is_number, names))


READERS = {".npz": read_npz, ".csv": read_csv, ".mat": read_mat}
SUFFIXES = tuple(READERS)


def read_file(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A user's own file by its suffix: samples in float32 or float64, and one label each.

    Raises:
        ValueError, FileNotFoundError: in one line.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise ValueError(f"data: {path} must be one of {', '.join(READERS)}.")
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {path}.")
    return READERS[path.suffix.lower()](path)


def _samples(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples and flat labels, of types and sizes that make sense; what float32 may round stays in float64."""
    if x.dtype.kind not in _NUMBERS or y.dtype.kind not in _LABELS:
        raise ValueError(f"samples of {x.dtype} and labels of {y.dtype}")
    if x.ndim < 1 or not x.size or len(x) != y.size:
        raise ValueError(f"samples {x.shape} and {y.size} labels")
    if y.dtype.kind in "SU" and all(_is_number(label) for label in y.flat):
        y = _numbers(y)  # 1 and 1.0 are one class, and 10 comes after 2
    strings, floats = y.dtype.kind in "SU", y.dtype.kind == "f"
    missing = np.char.str_len(np.char.strip(y)) == 0 if strings else np.isnan(y) if floats else np.zeros(1, bool)
    if missing.any():
        raise ValueError(f"{int(missing.sum())} of {y.size} labels are missing")
    exact = x.dtype.kind == "b" or x.dtype.itemsize <= (4 if x.dtype.kind == "f" else 2)
    return np.asarray(x, np.float32 if exact else np.float64), y.reshape(-1)


def _numbers(labels: np.ndarray) -> np.ndarray:
    """Labels as numbers; as integers where all are, since large ones would become equal as floats."""
    try:
        return np.array([int(label) for label in labels.flat], np.int64).reshape(labels.shape)
    except (ValueError, OverflowError):
        return labels.astype(np.float64)


def _is_number(cell: str | bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in str(cell)  # Python would take 1_1 for 11


def _brief(error: Exception) -> str:
    return one_line(error, 100) or type(error).__name__


def read_mapped(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped: only what is looked at is read. Changes stay in memory."""
    try:
        with open(path, "rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("its version is not 1.0")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            there = path.stat().st_size - file.tell()
        if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != there:
            raise ValueError(f"its header says {shape} of {dtype}, {there:,} bytes are there")
        return np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError) as error:
        raise ValueError(f"data: {path} is not a .npy file, or truncated: {_brief(error)}") from None


def read_text(path: Path) -> str:
    """A text in UTF-8, its line ends as they are."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {path} is no text in UTF-8 ({error.reason}, byte {error.start}).") from None
