"""MATLAB's level 5 files, numbers only: the few lines of the format that data sets need, every size checked.

Not by `scipy.io.loadmat`: a changed byte in a file makes version 1.17 of it crash the process. The format is that of
"MAT-File Format" (MathWorks), chapter 1: a header of 128 bytes, then elements of a tag (type, bytes) and their data.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_OTHERS = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse"}
_COMPLEX = 0x800  # a flag
_HEAD = 4096  # bytes that hold what comes before a matrix's numbers


class _Head(NamedTuple):
    """The header of a matrix, and where its numbers begin."""

    name: str
    kind: int
    is_complex: bool
    shape: tuple[int, ...]
    end: int


def read_matrices(
    path: Path, names: Sequence[str], check_unpacked: Callable[[Path, int], None]
) -> dict[str, np.ndarray]:
    """The matrices of these names, in the type of their class.

    Args:
        check_unpacked: raises where a file claims to hold too much.

    Raises:
        KeyError: one of the names is not in the file.
        ValueError: not such a file, damaged, or something else than real numbers under one of the names.
    """
    size, matrices = path.stat().st_size, dict[str, np.ndarray]()
    with open(path, "rb") as file:
        head = file.read(128)
        if head[126:] not in (b"IM", b"MI"):
            raise ValueError("expected a file of MATLAB 5 to 7.2")
        order = "<" if head[126:] == b"IM" else ">"
        while tag := file.read(8):
            kind, length = _two(tag, 0, order)
            following = file.tell() + length
            if following > size:
                raise ValueError(f"an element of {length:,} bytes ends behind the file")
            if kind == _COMPRESSED:
                unpacker, content = zlib.decompressobj(), file.read(length)
                begin = unpacker.decompress(content, _HEAD)
                inside, claimed = _two(begin, 0, order)
                begin, rest = begin[8:], unpacker.unconsumed_tail
            else:
                unpacker, inside, claimed, begin, rest = None, kind, length, file.read(min(length, _HEAD)), b""
            if inside != _MATRIX:
                raise ValueError(f"expected a matrix. Got an element of type {inside}")
            matrix = _head(begin, order)
            if matrix.name in names:
                if matrix.name in matrices:
                    raise ValueError(f"{matrix.name} is there twice")
                check_unpacked(path, claimed)
                left = max(claimed - len(begin), 0)
                # one byte at least: a limit of none is no limit
                begin += file.read(left) if unpacker is None else unpacker.decompress(rest, left + 1)
                matrices[matrix.name] = _numbers(begin[:claimed], matrix, order)
            file.seek(following)
    if missing := [name for name in names if name not in matrices]:
        raise KeyError(missing[0])
    return matrices


def _two(content: bytes, at: int, order: str) -> tuple[int, int]:
    if len(content) < at + 8:
        raise ValueError("an element ends within its tag")
    first, second = np.frombuffer(content, f"{order}u4", 2, at)
    return int(first), int(second)


def _part(content: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """The element at an offset: its type, its data, and where the next one begins."""
    first, length = _two(content, at, order)
    begin = at + 8
    if first >> 16:  # up to four bytes of data, in the tag
        first, length, begin = first & 0xFFFF, first >> 16, at + 4
        if length > 4:
            raise ValueError(f"{length} bytes in a tag that has room for 4")
    if begin + length > len(content):
        raise ValueError(f"an element of {length:,} bytes ends behind its matrix")
    return first, content[begin : begin + length], at + 8 if begin == at + 4 else begin + -(-length // 8) * 8


def _head(content: bytes, order: str) -> _Head:
    parts = list(_parts(content, order))
    (flags_type, flags, _), (shape_type, shape, _), (name_type, name, end) = parts
    if flags_type != 6 or len(flags) != 8 or shape_type != 5 or len(shape) % 4 or len(shape) < 8 or name_type != 1:
        raise ValueError("a matrix does not begin with flags, sides and a name")
    word = int(np.frombuffer(flags, f"{order}u4", 1)[0])
    sides = tuple(int(side) for side in np.frombuffer(shape, f"{order}i4"))
    return _Head(name.decode("latin1"), word & 0xFF, bool(word & _COMPLEX), sides, end)


def _parts(content: bytes, order: str) -> Iterator[tuple[int, bytes, int]]:
    at = 0
    for _ in range(3):
        part = _part(content, at, order)
        at = part[2]
        yield part


def _numbers(content: bytes, matrix: _Head, order: str) -> np.ndarray:
    if matrix.kind not in _CLASSES or matrix.is_complex:
        what = "complex" if matrix.kind in _CLASSES else _OTHERS.get(matrix.kind, f"class {matrix.kind}")
        raise ValueError(f"{matrix.name} is {what}, where real numbers were expected")
    kind, data, _ = _part(content, matrix.end, order)
    if kind not in _TYPES:
        raise ValueError(f"the numbers of {matrix.name} are of an unknown type {kind}")
    dtype = np.dtype(order + _TYPES[kind])
    claimed = math.prod(matrix.shape) * dtype.itemsize
    if min(matrix.shape) < 0 or claimed != len(data):
        raise ValueError(f"{matrix.name} is {matrix.shape}, {claimed:,} bytes; {len(data):,} are there")
    return np.frombuffer(data, dtype).reshape(matrix.shape, order="F").astype(_CLASSES[matrix.kind])
