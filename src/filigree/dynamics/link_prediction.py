"""Scores of missing connections by the paths of length 3 that lead to them in the graph of a layer's two sides.

Units u (outputs) and v (inputs) without a connection are joined by paths u - z1 - z2 - v: z1 an input that u reads, z2
an output that reads both z1 and v. All such z1 and z2 are the local community of the pair. Of its members with degree
d, i links stay inside of it, one leads to u or v, and e = d - i - 1 leave it (Muscoloni et al. 2022). Members with few
links to the outside speak for a connection:

- CH3-L3, of paths (CHT; Zhang et al. 2024): `sum over paths of 1 / sqrt((1 + e_z1) (1 + e_z2))`, in the time of as many
  paths as there are, about `nnz d^2` at degree d.
- CH2-L3n, of the community's units (CHTs; Zhang et al. 2025, eq. 3): `sum over z1 and z2 of (1 + i_z) / (1 + e_z)`, in
  the time of the paths of length 2 between units of one side, times d: for layers of more than some percent.

Both give blocks `(flat indices, scores)` of the pairs that paths reach, by products of sparse matrices; they hold
nothing as large as the dense weight. Where many pairs of inputs share an output, and there are only some thousands of
them, CH2-L3n goes by dense blocks, which is several times faster and holds a dense matrix of the layer meanwhile. Sums
are taken in the same order whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import scipy  # its parts load at their first use
import torch
from torch import Tensor

from filigree.ops.sparse import spmm, spmm_t
from filigree.topology.flat_indices import pattern_from_flat_indices

Candidates = Iterator[tuple[np.ndarray, np.ndarray]]

_BLOCK = 4_000_000  # entries of a block's largest intermediate matrix


def ch3_l3(flat_indices: Tensor, out_features: int, in_features: int) -> Candidates:
    """CH3-L3 of all pairs that paths of length 3 reach; `flat_indices` are the sorted connections."""
    a, at = _adjacency(flat_indices, out_features, in_features)
    out_degree, in_degree = np.diff(a.indptr), np.diff(at.indptr)
    for first, last in _blocks(a @ (at @ out_degree)):
        rows = a[first:last]
        shared = (rows @ at).toarray()  # inputs that u and z2 have in common: the links of z2 inside the community
        u = np.repeat(np.arange(last - first), np.diff(rows.indptr))
        z1 = rows.indices
        to_z2 = at[z1]  # a row for each link (u, z1), with the outputs z2 that read z1
        of_link = np.repeat(np.arange(len(z1)), np.diff(to_z2.indptr))
        outside = out_degree[to_z2.indices] - shared[u[of_link], to_z2.indices]  # 1 + e_z2; 0 where it reads no v
        # The imaginary part counts the paths of each sum: the links of z1 inside the community.
        weights = np.where(outside > 0, 1 / np.sqrt(np.maximum(outside, 1)), 0) + 1j
        to_v = scipy.sparse.csr_array((weights, to_z2.indices, to_z2.indptr), shape=to_z2.shape) @ a
        degree = np.repeat(in_degree[z1], np.diff(to_v.indptr))
        outside = degree - to_v.data.imag  # 1 + e_z1; 0 where all that read z1 read v: u too, no missing pair
        to_v.data = np.where(outside > 0, to_v.data.real / np.sqrt(np.maximum(outside, 1)), 0)
        of_u = scipy.sparse.csr_array((np.ones(len(z1)), np.arange(len(z1)), rows.indptr), shape=(len(shared), len(z1)))
        yield _missing(of_u @ to_v.real, rows, first)


def ch2_l3(flat_indices: Tensor, out_features: int, in_features: int) -> Candidates:
    """CH2-L3n of all pairs that paths of length 3 reach; `flat_indices` are the sorted connections."""
    a, at = _adjacency(flat_indices, out_features, in_features)
    out_degree, in_degree = np.diff(a.indptr), np.diff(at.indptr)
    if float(out_degree @ out_degree) > 0.2 * in_features**2 and in_features**2 <= 8 * _BLOCK:
        yield from _ch2_l3_of_dense_blocks(a, flat_indices, out_degree, in_degree)
        return
    of_inputs = _ratios(at @ a, in_degree)  # (v, z1); symmetric but for the degree
    for first, last in _blocks(np.full(out_features, in_features)):
        rows = a[first:last]
        of_outputs = _ratios(rows @ at, out_degree)  # (u, z2)
        yield _missing(of_outputs @ a + rows @ of_inputs.T, rows, first)


def _ch2_l3_of_dense_blocks(
    a: scipy.sparse.csr_array, flat_indices: Tensor, out_degree: np.ndarray, in_degree: np.ndarray
) -> Candidates:
    """The same where most pairs of inputs share an output: the products of connections with dense blocks of rows."""
    rows, cols = a.shape
    pattern, ones = pattern_from_flat_indices(flat_indices, rows, cols), torch.ones(a.nnz, dtype=torch.float64)
    out_of, in_of = torch.from_numpy(out_degree)[:, None], torch.from_numpy(in_degree)[:, None]

    def ratios(shared: Tensor, degree: Tensor) -> Tensor:
        return torch.where(shared > 0, (1 + shared) / (degree - shared).clamp_(min=1), 0)

    of_inputs = ratios(spmm_t(pattern, ones, torch.from_numpy(a.toarray())), in_of)  # (z1, v)
    for first, last in _blocks(np.full(rows, rows + cols)):
        begin, end = a.indptr[first], a.indptr[last]
        of_block = pattern_from_flat_indices(flat_indices[begin:end] - first * cols, last - first, cols)
        read = torch.from_numpy(a[first:last].toarray().T.copy())
        of_outputs = ratios(spmm(pattern, ones, read), out_of)  # (z2, u)
        scores = spmm_t(pattern, ones, of_outputs).t() + spmm(of_block, ones[begin:end], of_inputs)
        scores = scores.flatten()
        scores[flat_indices[begin:end] - first * cols] = 0
        reached = scores.nonzero().squeeze(1)
        yield (reached + first * cols).numpy(), scores[reached].numpy()


SCORES: dict[str, Callable[[Tensor, int, int], Candidates]] = {"cht3": ch3_l3, "cht2": ch2_l3}
"""The rules by the names that `fg.Evolution(grow=...)` gives them."""


def _adjacency(flat_indices: Tensor, rows: int, cols: int) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    row, col = np.divmod(flat_indices.numpy(), cols)
    a = scipy.sparse.csr_array((np.ones(len(row)), (row, col)), shape=(rows, cols))
    return a, a.T.tocsr()


def _blocks(work: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose work together is about that of a block, one row at least."""
    done = np.cumsum(work)
    first = 0
    while first < len(work):
        last = max(first + 1, int(np.searchsorted(done, (done[first - 1] if first else 0) + _BLOCK, side="right")))
        yield first, last
        first = last


def _ratios(shared: scipy.sparse.csr_array, degree: np.ndarray) -> scipy.sparse.csr_array:
    """(1 + i) / (1 + e) of each unit of the columns, which shares i neighbours with that of the row."""
    shared.data = (1 + shared.data) / np.maximum(degree[shared.indices] - shared.data, 1)
    return shared


def _missing(scores: scipy.sparse.csr_array, rows: scipy.sparse.csr_array, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The scores of pairs that have no connection, as flat indices and scores; `rows` are the connections."""
    scores.sort_indices()
    flat = _flat(scores, first)
    there = np.searchsorted(flat, connected := _flat(rows, first))
    is_missing = scores.data > 0
    is_reached = there < len(flat)
    there, connected = there[is_reached], connected[is_reached]
    is_missing[there[flat[there] == connected]] = False
    return flat[is_missing], scores.data[is_missing]


def _flat(matrix: scipy.sparse.csr_array, first: int) -> np.ndarray:
    row = np.repeat(np.arange(first, first + matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    return row * matrix.shape[1] + matrix.indices
