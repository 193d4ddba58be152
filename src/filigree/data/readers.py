"""Readers of the files' formats. Sizes are checked against what the header says; anything odd is one line of error."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
import scipy.io


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
            if expected > 1 << 31:
                raise ValueError(f"its header promises {expected:,} bytes")
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
    """A MATLAB file with `X` (samples x features) and `Y` (labels)."""
    try:
        content = scipy.io.loadmat(path)
        x, y = np.asarray(content["X"], np.float32), np.asarray(content["Y"]).reshape(-1)
    except KeyError as error:
        raise ValueError(f"data: {path} must hold X and Y. {error} is missing.") from None
    except Exception as error:  # scipy's reader fails in many ways on a damaged file
        raise ValueError(
            f"data: {path} is no MATLAB file that can be read ({' '.join(str(error).split())[:100]})."
        ) from None
    return x, y


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A numpy archive with `x` and `y`; nothing pickled is read."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return np.asarray(content["x"], np.float32), np.asarray(content["y"]).reshape(-1)
    except KeyError:
        raise ValueError(f"data: {path} must hold arrays x and y.") from None
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"data: {path} is no .npz file that can be read ({' '.join(str(error).split())[:100]})."
        ) from None


def read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Comma-separated numbers, the label in the last column; a first line that is not numbers is a header."""
    try:
        with open(path, encoding="utf-8") as file:
            first = file.readline()
        header = 0 if all(_is_number(cell) for cell in first.strip().split(",")[:-1]) else 1
        rows = np.genfromtxt(path, delimiter=",", skip_header=header, dtype=str, encoding="utf-8", ndmin=2)
        x = rows[:, :-1].astype(np.float32)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"data: {path} is no table of numbers ({' '.join(str(error).split())[:100]}).") from None
    return x, rows[:, -1]


READERS = {".npz": read_npz, ".csv": read_csv, ".mat": read_mat}


def read_file(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A user's own file by its suffix. `ValueError` or `FileNotFoundError` in one line."""
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise ValueError(f"data: {path} must be one of {', '.join(READERS)}.")
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {path}.")
    return READERS[path.suffix.lower()](path)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_mapped(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped: only what is looked at is read. Changes stay in memory."""
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"data: {path} is not a .npy file, or truncated: {' '.join(str(error).split())}") from None


def read_text(path: Path) -> str:
    """A text in UTF-8, its line ends as they are."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {path} is no text in UTF-8 ({error.reason}, byte {error.start}).") from None
