"""Small integers as bytes: a byte a sample where few are not zero, else packed, or the numbers as they are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SKIP, END, GAP = 254, 255, 127  # GAP columns without a sample; the end of a row; gaps of a byte are below GAP


def encode(counts: Tensor, packed: bool = True) -> Tensor:
    """The file form of a matrix of integers `(rows, cols)`: the smallest of these.

    - A stream, `(bytes,)` uint8, row by row: a sample is one byte, twice its distance from the column before plus one
      if it is negative; a count of three is three samples, the distance of the last two 0. 254 goes on by 127 columns,
      255 ends a row.
    - The numbers themselves, `(rows, cols)`, in int8, int16 or int32.
    - Packed, `(bytes,)` int8: a byte with the bits b of a number; a bit a place, whether there is a number other than
      zero; then these, in b bits each. Only where `packed` allows it.
    """
    matrix = counts.cpu().numpy()
    rows, cols = matrix.shape
    row, col = matrix.nonzero()
    values = matrix[row, col]
    before = np.concatenate([[0], col[:-1]])
    before[np.concatenate([[True], row[1:] != row[:-1]])[: len(row)]] = 0
    gap = col - before[: len(col)]
    skips, repeats = gap // GAP, np.abs(values) - 1
    length = skips + 1 + repeats
    itemsize = np.dtype(_smallest(matrix)).itemsize
    sizes = int(length.sum()) + rows, rows * cols * itemsize, _packed_bytes(rows * cols, len(values), _bits(values))
    if packed and sizes[2] < min(sizes[:2]):
        return _pack(matrix, values)
    if sizes[1] <= sizes[0]:
        return torch.from_numpy(np.ascontiguousarray(matrix.astype(_smallest(matrix))))
    start = np.cumsum(length) - length + row  # each earlier row has its end
    stream = np.full(int(length.sum()) + rows, SKIP, dtype=np.uint8)
    negative = (values < 0).astype(np.uint8)
    main = start + skips
    stream[main] = (gap % GAP * 2).astype(np.uint8) + negative
    first = np.cumsum(repeats) - repeats
    again = np.repeat(main + 1 - first, repeats) + np.arange(int(repeats.sum()))
    stream[again] = np.repeat(negative, repeats)
    in_row = np.bincount(row, weights=length, minlength=rows).astype(np.int64)
    stream[np.cumsum(in_row) + np.arange(rows)] = END
    return torch.from_numpy(stream)


def decode(code: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compressed rows of what `encode` made: indptr `(rows + 1,)`, columns and counts `(nnz,)`, all int32.

    Raises:
        ValueError: it is not the code of a `(rows, cols)` matrix.
    """
    if code.dim() == 2:
        if code.shape != (rows, cols) or code.dtype not in (torch.int8, torch.int16, torch.int32):
            raise ValueError(f"code: expected integers ({rows}, {cols}). Got {tuple(code.shape)} of {code.dtype}.")
        matrix = code.cpu().numpy()
        row, col = matrix.nonzero()
        return _compressed(row, col, matrix[row, col], rows)
    if code.dim() == 1 and code.dtype == torch.int8:
        return _unpack(code.cpu().numpy().view(np.uint8), rows, cols)
    if code.dim() != 1 or code.dtype != torch.uint8:
        raise ValueError(f"code: expected a stream of bytes. Got {tuple(code.shape)} of {code.dtype}.")
    stream = code.cpu().numpy()
    end, skip = stream == END, stream == SKIP
    if int(end.sum()) != rows or (rows and not end[-1]):
        raise ValueError(f"code: expected the ends of {rows} rows, the last at the end. Got {int(end.sum())}.")
    sample = ~(end | skip)
    row = np.cumsum(end) - end
    at = np.cumsum(np.where(sample, stream >> 1, np.where(skip, GAP, 0)).astype(np.int64))
    ends = np.concatenate([[0], at[end]])[:rows] if rows else np.zeros(0, dtype=np.int64)
    row, col = row[sample], (at - ends[row])[sample] if rows else at[sample]
    if len(col) and int(col.max()) >= cols:
        raise ValueError(f"code: columns must be below {cols}. Got {int(col.max())}.")
    fresh = np.ones(len(col), dtype=bool)
    fresh[1:] = (col[1:] != col[:-1]) | (row[1:] != row[:-1])
    signs = 1 - 2 * (stream[sample] & 1).astype(np.int32)
    values = np.add.reduceat(signs, fresh.nonzero()[0]) if len(col) else signs
    return _compressed(row[fresh], col[fresh], values, rows)


def _bits(values: np.ndarray) -> int:
    """Of a number with its sign."""
    return int(np.abs(values.astype(np.int64)).max(initial=1)).bit_length() + 1


def _packed_bytes(positions: int, numbers: int, bits: int) -> int:
    return 1 + -(-positions // 8) + -(-numbers * bits // 8)


def _pack(matrix: np.ndarray, values: np.ndarray) -> Tensor:
    bits = _bits(values)
    shifted = values.astype(np.int64) + (1 << (bits - 1))
    digits = (shifted[:, None] >> np.arange(bits)).astype(np.uint8) & 1
    parts = [np.array([bits], dtype=np.uint8), np.packbits(matrix.reshape(-1) != 0), np.packbits(digits.reshape(-1))]
    return torch.from_numpy(np.concatenate(parts).view(np.int8))


def _unpack(stored: np.ndarray, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    positions = rows * cols
    bits, behind = int(stored[0]) if len(stored) else 0, 1 + -(-positions // 8)
    if not 2 <= bits <= 32 or len(stored) < behind:
        raise ValueError(f"code: expected the packed numbers of {rows} x {cols} positions. Got {len(stored)} bytes.")
    row, col = np.unpackbits(stored[1:behind], count=positions).reshape(rows, cols).nonzero()
    if len(stored) != (size := _packed_bytes(positions, len(row), bits)):
        raise ValueError(f"code: expected {size} bytes of packed numbers. Got {len(stored)}.")
    digits = np.unpackbits(stored[behind:], count=len(row) * bits).reshape(-1, bits).astype(np.int64)
    values = (digits << np.arange(bits)).sum(1) - (1 << (bits - 1))
    if not values.all():
        raise ValueError("code: expected packed numbers other than zero. Got zeros.")
    return _compressed(row, col, values, rows)


def _compressed(row: np.ndarray, col: np.ndarray, values: np.ndarray, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    indptr = np.zeros(rows + 1, dtype=np.int32)
    np.cumsum(np.bincount(row, minlength=rows), out=indptr[1:])
    return torch.from_numpy(indptr), torch.from_numpy(col.astype(np.int32)), torch.from_numpy(values.astype(np.int32))


def _smallest(matrix: np.ndarray) -> type[np.signedinteger]:
    most = int(np.abs(matrix).max(initial=0))
    return np.int8 if most <= 127 else np.int16 if most <= 32767 else np.int32
