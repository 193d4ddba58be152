"""What must agree after a rewiring: an index and its transpose, and the processes of a data-parallel run."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, distributed

from filigree.nn.sparse.sparse_layer import SparseLayer
from filigree.ops.pattern import Pattern
from filigree.topology.flat_indices import check_csr
from filigree.topology.shards import part_of


def check_rewired(name: str, layer: Any, nnz: int) -> None:
    """Look at a rewired layer in O(nnz).

    Raises:
        AssertionError: it has not `nnz` connections, its index is not that of its transpose, or another process has
            other connections.
    """
    flat_indices, part = layer.flat_indices(), part_of(layer)
    number = part.total(len(flat_indices))
    _expect(number == nnz, f"layer {name!r} has {number} connections, {nnz} before it was rewired")
    if isinstance(layer, SparseLayer):
        check_csr(layer.indptr, layer.indices, layer.out_features, layer.in_features, f"layer {name!r}")
        _expect(is_transpose(layer.pattern), f"layer {name!r}: the index of its transpose is of another topology")
    if part.processes > 1:
        return  # each has its own rows
    hashes = over_processes(hashlib.sha256(flat_indices.numpy().tobytes()).hexdigest())
    other = next((rank for rank, digest in enumerate(hashes) if digest != hashes[0]), None)
    _expect(other is None, f"layer {name!r} has other connections in process {other} than in process 0")


def is_transpose(pattern: Pattern) -> bool:
    """Whether both halves of a pattern list the same connections, by columns as by rows, and number them alike.

    `t_perm[k]` is the number by rows of the k-th connection by columns, `t_place` its inverse.
    """
    row, col = _lines(pattern.indptr), pattern.indices.long()
    t_row, t_col = pattern.t_indices.long(), _lines(pattern.t_indptr)
    order = pattern.t_perm.long()
    same = torch.equal(row[order], t_row) and torch.equal(col[order], t_col)
    return same and torch.equal(pattern.t_place.long()[order], torch.arange(pattern.nnz, device=order.device))


def gathered(x: Tensor) -> Tensor:
    """The samples of all processes, `(samples, ...)`, on the device of this one's."""
    return torch.cat([part.to(x.device) for part in over_processes(x)]) if _processes() > 1 else x


def over_processes(value: Any) -> list[Any]:
    """One value of each process of a data-parallel run, in the order of their ranks."""
    if _processes() == 1:
        return [value]
    values: list[Any] = [None] * _processes()
    distributed.all_gather_object(values, value)
    return values


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _lines(indptr: Tensor) -> Tensor:
    """The row of each connection."""
    return torch.repeat_interleave(torch.arange(len(indptr) - 1, device=indptr.device), indptr.long().diff())


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(f"Evolution: {otherwise}.")
