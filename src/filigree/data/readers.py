"""Readers of the files' formats. What a header claims is checked against the file before memory is taken for it.

Nothing pickled is read. Anything unexpected raises an error of one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from filigree.config import clipped, listed, one_line
from filigree.data.frames import ARROW, is_frame, read_arrow, read_frame
from filigree.data.matlab import read_matrices
from filigree.data.samples import LABELS, Reading, Samples
from filigree.data.sparse_files import SVMLIGHT, TargetError, read_svmlight, sparse_samples
from filigree.data.tables import read_table

_DEFLATE = 1040  # no deflated stream unpacks to more than about 1032 times its size
AS_IT_IS = Reading()


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


def read_mat(path: Path, how: Reading = AS_IT_IS) -> Samples:
    """A MATLAB file (versions 5 to 7.2) with numbers `X` (samples x features) and `Y` (labels)."""
    try:
        content = read_matrices(path, ("X",) if how.wanted else ("X", "Y"), check_unpacked)
        x = _turned(content["X"], how)
        samples = _unlabelled(x) if how.wanted else Samples.of(x, content["Y"])
    except KeyError as error:
        raise ValueError(f"data: {path} must hold X and Y. {error} is missing.") from None
    except (OSError, ValueError, zlib.error) as error:
        raise ValueError(f"data: {path} is no MATLAB file that can be read ({_brief(error)}).") from None
    return _of_arrays(path, samples, how)


def read_npz(path: Path, how: Reading = AS_IT_IS) -> Samples:
    """A numpy archive with `x` and `y`, or `X` and `Y`; or a sparse matrix of scipy, see `sparse_files.py`."""
    try:
        with zipfile.ZipFile(path) as archive:
            present = {entry.removesuffix(".npy") for entry in archive.namelist()}
            if {"format", "shape", "data"} <= present:
                samples = sparse_samples(path, lambda name: npz_array(archive, name), present, how)
                how = dataclasses.replace(how, target=None)
            else:
                x, y = (name if name in present else name.upper() for name in ("x", "y"))
                turned = _turned(npz_array(archive, x), how)
                labelled = y in present or not how.wanted
                samples = Samples.of(turned, npz_array(archive, y)) if labelled else _unlabelled(turned)
    except KeyError:
        wanted = "an array x" if how.wanted else "arrays x and y"
        raise ValueError(
            f"data: {path} must hold {wanted}. Got {listed(sorted(map(clipped, present))) or 'none'}."
        ) from None
    except TargetError as error:
        raise ValueError(f"data: {path}: {error}.") from None
    except Exception as error:  # zipfile's reader fails in many ways on a damaged file
        raise ValueError(f"data: {path} is no .npz file that can be read ({_brief(error)}).") from None
    return _of_arrays(path, samples, how)


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
    if dtype.kind not in LABELS or not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"{name} is an array {shape} of {dtype}, where numbers or labels were expected")
    if claimed != there:
        raise ValueError(f"the header of {name} says {claimed:,} bytes, {there:,} are there")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_csv(path: Path, how: Reading = AS_IT_IS) -> Samples:
    """A table in text, packed or not: see `tables.py`."""
    return read_table(path, how, check_unpacked)


def read_sparse_text(path: Path, how: Reading = AS_IT_IS) -> Samples:
    """Sparse rows as text: see `sparse_files.py`."""
    samples = read_svmlight(path, how, check_unpacked)
    return _of_arrays(path, samples, how)


READERS = {
    ".npz": read_npz,
    ".mat": read_mat,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".csv.gz": read_csv,
    ".tsv.gz": read_csv,
    **dict.fromkeys(ARROW, read_arrow),
    **dict.fromkeys(SVMLIGHT, read_sparse_text),
}
SUFFIXES = tuple(READERS)


def is_file_name(name: str | Path) -> bool:
    """Whether a name is that of a file of a user's own that `read_file` reads."""
    return str(name).lower().endswith(SUFFIXES)


def read_file(path: Any, how: Reading = AS_IT_IS) -> Samples:
    """A user's own file by its suffix, or a frame: samples in float32 or float64, and one label each.

    Raises:
        ValueError, FileNotFoundError: in one line.
    """
    if is_frame(path):
        return read_frame(path, how)
    if "://" in str(path):
        raise ValueError(f"data: {path} is an address. Download the file, and give its name.")
    path = Path(path)
    reader = next((reader for suffix, reader in READERS.items() if path.name.lower().endswith(suffix)), None)
    if reader is None:
        raise ValueError(f"data: {path} must be one of {', '.join(SUFFIXES)}.")
    if not path.is_file():
        close = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*")], n=1)
        hint = f" Did you mean {path.with_name(close[0])}?" if close and not path.exists() else ""
        raise FileNotFoundError(f"data: there is no file {path}.{hint}")
    return reader(path, how)


def _turned(x: np.ndarray, how: Reading) -> np.ndarray:
    """Samples of a file, from its columns where they stand there."""
    return x.T if how.transpose and x.ndim == 2 else x


def _unlabelled(x: np.ndarray) -> Samples:
    return Samples.of(x, np.full(len(x) if x.ndim else 0, ""))


def _of_arrays(path: Path, samples: Samples, how: Reading) -> Samples:
    """The samples of a file that names no columns, without rows that lack values."""
    if how.wanted is not None:
        return samples
    if given := [name for name, value in (("target", how.target), ("drop", how.drop)) if value]:
        raise ValueError(f"data: {given[0]} names a column of a table. The arrays of {path} have none.")
    try:
        return samples.without_missing(how.missing)
    except ValueError as error:
        raise ValueError(f"data: {path}: {error}") from None


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
