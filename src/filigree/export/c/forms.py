"""Store a weight matrix in a C program: there are several forms, of which the smallest is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from filigree.export.c.source import smallest_signed, smallest_unsigned
from filigree.nn.integer.integer_code import encode


@dataclass(frozen=True)
class Form:
    """It holds a stored matrix: constant arrays by the names that its walk (`kernels.c.in`) reads them by."""

    label: str
    walk: str
    arrays: dict[str, np.ndarray]
    words: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


def smallest(matrix: Any) -> Form:
    """Choose the form of the fewest bytes; of equally small ones the dense one, which is the fastest to read.

    Args:
        matrix: `scipy.sparse.csr_array` `(rows, columns)` without stored zeros, columns sorted, float32 or integers.
    """
    integers = matrix.dtype.kind == "i"
    forms = list(_sparse(matrix))
    if integers:
        forms += _integers(matrix)
    best = min(forms, key=lambda form: form.bytes)
    rows, columns = matrix.shape
    itemsize = smallest_signed(matrix.data).itemsize if integers else 4
    if rows * columns * itemsize > best.bytes:  # a matrix too large to be written out is never written out
        return best
    dense = matrix.toarray()
    label = f"integers of {8 * itemsize} bits" if integers else "dense"
    return Form(label, "walk dense", {"values": smallest_signed(dense) if integers else dense})


def _sparse(matrix: Any) -> Iterator[Form]:
    """Store the nonzeros of each row, after their number: with their columns, or with the distances between them."""
    integers = matrix.dtype.kind == "i"
    values, kind = (smallest_signed(matrix.data), "sparse integers") if integers else (matrix.data, "sparse")
    indices = matrix.indices.astype(np.int64)
    entries, columns = smallest_unsigned(np.diff(matrix.indptr)), smallest_unsigned(indices)
    label = f"{kind}, {8 * columns.itemsize}-bit columns"
    yield Form(label, "walk indices", {"entries": entries, "indices": columns, "values": values})
    gap = np.diff(indices, prepend=0)
    starts = matrix.indptr[:-1][np.diff(matrix.indptr) > 0]
    gap[starts] = indices[starts]
    fillers = np.maximum(gap - 1, 0) // 255  # zeros on the way, where a distance does not fit into a byte
    at = np.cumsum(fillers + 1) - 1
    gaps = np.full(len(gap) + int(fillers.sum()), 255, np.uint8)
    filled = np.zeros(len(gaps), values.dtype)
    gaps[at], filled[at] = gap - 255 * fillers, values
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    entries = smallest_unsigned(np.bincount(row, fillers + 1, matrix.shape[0]).astype(np.int64))
    yield Form(f"{kind}, 8-bit distances", "walk gaps", {"entries": entries, "gaps": gaps, "values": filled})
    if matrix.shape[0] * matrix.shape[1] < 64 * len(values):  # else a bit a weight is more than the distances are
        positions = _positions(matrix)
        yield Form(f"{kind}, a bit a weight", "walk bits", {"positions": positions, "values": values})
        if integers and int(np.abs(values).max(initial=1)) < 64:  # of 8 bits: as they are
            yield _packed_bits(matrix, positions)


def _positions(matrix: Any) -> np.ndarray:
    """Set a bit for each nonzero, from the lowest bit of a byte on; a row begins with a byte."""
    rows, columns = matrix.shape
    flags = np.zeros((rows, -(-columns // 8) * 8), bool)
    flags[np.repeat(np.arange(rows), np.diff(matrix.indptr)), matrix.indices] = True
    return np.packbits(flags, axis=1, bitorder="little").reshape(-1)


def _packed_bits(matrix: Any, positions: np.ndarray) -> Form:
    """Store the nonzeros in as few bits as they fit into, signs where all are 1 and -1; a row begins with a byte."""
    most = int(np.abs(matrix.data).max(initial=1))
    bits = 1 if most == 1 else most.bit_length() + 1
    raised = matrix.data.astype(np.int64) + (1 << (bits - 1)) if bits > 1 else (matrix.data < 0).astype(np.int64)
    counts = np.diff(matrix.indptr).astype(np.int64)
    starts = np.cumsum((counts * bits + 7) // 8) - (counts * bits + 7) // 8  # bytes
    number = np.arange(len(matrix.data)) - np.repeat(matrix.indptr[:-1].astype(np.int64), counts)
    first = 8 * np.repeat(starts, counts) + number * bits
    flags = np.zeros(8 * (int(((counts * bits + 7) // 8).sum()) + 1), bool)  # a last byte: two are read at a time
    for bit in range(bits):
        flags[first + bit] = raised >> bit & 1
    words = {
        "bits": str(bits),
        "mask": str(2**bits - 1),
        "value": "1 - 2 * raw" if bits == 1 else f"raw - {2 ** (bits - 1)}",
    }
    arrays = {"positions": positions, "codes": np.packbits(flags, bitorder="little")}
    return Form(
        f"integers of {bits} bits, a bit a weight" if bits > 1 else "signs, a bit a weight",
        "walk fields",
        arrays,
        words,
    )


def _integers(matrix: Any) -> Iterator[Form]:
    rows, columns = matrix.shape
    most = int(np.abs(matrix.data).max(initial=0))
    for bits, largest in ((2, 1), (4, 7)):
        if most <= largest:
            each = 8 // bits
            padded = np.zeros((rows, -(-columns // each) * each), np.int64)
            padded[:, :columns] = matrix.toarray()
            digits = (padded + largest).reshape(rows, padded.shape[1] // each, each) << (bits * np.arange(each))
            words = {"each": str(each), "bits": str(bits), "mask": str(2**bits - 1), "middle": str(largest)}
            label = "ternary, 2 bits a weight" if bits == 2 else "integers of 4 bits"
            yield Form(label, "walk packed", {"codes": digits.sum(2).astype(np.uint8)}, words)
    stream = encode(torch.from_numpy(matrix.toarray().astype(np.int32)), packed=False)
    if stream.dim() == 1:  # otherwise a byte a weight is smaller
        yield Form("a byte a sample", "walk samples", {"samples": stream.numpy()})
    if most <= 1:
        row = np.repeat(np.arange(rows), np.diff(matrix.indptr))
        negative = matrix.data < 0
        order = np.lexsort((matrix.indices, negative, row))
        entries = np.bincount(2 * row + negative, minlength=2 * rows)
        arrays = {"entries": smallest_unsigned(entries), "indices": smallest_unsigned(matrix.indices[order])}
        yield Form("ternary, columns of +1 and of -1", "walk signs", arrays)
