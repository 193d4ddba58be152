"""Batches: gathered from tensors by a permutation, or taken from a torch DataLoader."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from filigree.ops.sparse_rows import is_scipy_sparse, is_sparse_rows, rows_of, sparse_rows, taken

Augment = Callable[..., Tensor]
OTHER_LAYOUTS = (torch.sparse_coo, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)  # rows cannot be taken of them


def batch_sizes(samples: int, batch_size: int) -> list[int]:
    """The sizes of the batches in an epoch of training.

    A remainder of less than half a batch joins the batch before it: a whole step by the mean of a few samples, at a
    learning rate that suits a full batch, can undo an epoch.
    """
    whole, rest = divmod(samples, batch_size)
    sizes = [batch_size] * whole
    if sizes and 2 * rest < batch_size:
        sizes[-1] += rest
    elif rest:
        sizes.append(rest)
    return sizes


class TensorBatches:
    """Batches of a pair of tensors that lie in memory; no per-sample Python.

    With `order` (training) every pass draws a permutation and gathers each batch with one `index_select` a tensor;
    without it (evaluation) batches are copies of slices, as a model may work in place on what it is given. Of several
    processes all draw the same permutation, and each gathers its own shard of every batch, so that together they take
    the steps of one; a last batch with fewer samples than processes is left out. In training the batches are of
    `batch_sizes`.

    Attributes:
        samples: samples in a pass. scale: weight of the current shard's mean in the mean over the whole batch.
    """

    def __init__(
        self,
        x: Tensor,  # (samples, ...)
        y: Tensor,  # (samples, ...)
        batch_size: int,
        device: torch.device,
        order: torch.Generator | None = None,
        drop_last: bool = False,
        augment: Callable[[Tensor], Tensor] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.x, self.y, self.batch_size, self.device = x, y, batch_size, device
        self.order, self.augment, self.rank, self.processes = order, augment, rank, processes
        self._is_sparse = is_sparse_rows(x)
        self.samples = len(x) - (len(x) % batch_size if drop_last else 0)
        self.scale = 1.0
        self.generators = [order] if order else []

    def set_epoch(self, epoch: int) -> None:
        """The epoch begins; the order comes from the generator's state alone."""

    def __len__(self) -> int:
        return (
            -(-self.samples // self.batch_size)
            if self.order is None
            else len(batch_sizes(self.samples, self.batch_size))
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y, device = self.x, self.y, self.device
        for rows in self._rows():
            # `index_select` takes less than half the time of `x[rows]`; a reused output buffer gains nothing more.
            if isinstance(rows, Tensor):
                batch = taken(x, rows) if self._is_sparse else x.index_select(0, rows)
                labels = y.index_select(0, rows)
                if x.device != device:
                    batch, labels = batch.to(device), labels.to(device)
            else:
                batch, labels = rows_of(x, rows).to(device, copy=True), y[rows].to(device, copy=True)
            yield (self.augment(batch) if self.augment else batch), labels

    def _rows(self) -> Iterator[Tensor | slice]:
        if self.order is None:
            slices = [slice(i, i + self.batch_size) for i in range(0, self.samples, self.batch_size)]
            yield from slices[self.rank :: self.processes]
            return
        permutation = torch.randperm(len(self.x), generator=self.order)[: self.samples].to(self.x.device)
        for rows in permutation.split(batch_sizes(self.samples, self.batch_size)):
            if self.processes == 1:
                yield rows
            elif len(rows) >= self.processes:
                shard = rows[self.rank :: self.processes]
                self.scale = len(shard) * self.processes / len(rows)
                yield shard


class LoaderBatches:
    """Batches of a DataLoader, moved to the device. The loader decides size and order."""

    scale = 1.0

    def __init__(
        self, loader: DataLoader, name: str, device: torch.device, augment: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.loader, self.name, self.device, self.augment = loader, name, device, augment
        self.samples, self.batch_size = None, getattr(loader, "batch_size", None)
        known = (getattr(part, "generator", None) for part in _order_of(loader))
        self.generators = list({id(generator): generator for generator in known if generator is not None}.values())

    def set_epoch(self, epoch: int) -> None:
        """The epoch begins; samplers, and streams of data, that shuffle by its number are told."""
        for part in (*_order_of(self.loader), getattr(self.loader, "dataset", None)):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
                raise TypeError(f"{self.name}: batches must be pairs (x, y) of tensors. Got {type(batch).__name__}.")
            x, y = (part.to(self.device) for part in batch)
            yield (self.augment(x) if self.augment else x), y


def _order_of(loader: DataLoader) -> list[Any]:
    """What decides the order: the loader, its samplers, and those inside them, each once."""
    parts: list[Any] = [loader]
    for part in parts:
        inner = (getattr(part, name, None) for name in ("sampler", "batch_sampler"))
        parts += [each for each in inner if each is not None and all(each is not known for known in parts)]
    return parts


Batches = TensorBatches | LoaderBatches


def make_batches(
    data: Any,
    name: str,
    batch_size: int,
    device: torch.device,
    order: torch.Generator | None = None,
    drop_last: bool = False,
    augment: Callable[[Tensor], Tensor] | None = None,
    rank: int = 0,
    processes: int = 1,
    loader_of: Callable[[DataLoader], DataLoader] = lambda loader: loader,
    dtype: torch.dtype | None = None,
) -> Batches:
    """Batches of whatever holds the data, shuffled by `order` where there is one; a stream keeps an order of its own.

    Args:
        data: a pair `(x, y)` of tensors, an object with tensors `.x` and `.y`, a Dataset, or a DataLoader (which keeps
            its own batch size and order). x may be a sparse matrix of scipy or a CSR tensor, and so are its batches.
        name: whose argument it is, for errors: "train", "validation", "test".
        loader_of: prepares a DataLoader for several processes.
        dtype: of a sparse matrix of scipy; by default its own.

    Raises:
        TypeError: data of another kind; sparse tensors that are not CSR.
        ValueError: no samples, lengths that differ, NaN or Inf; no whole batch with `drop_last`.
    """
    if batch_size < 1:
        raise ValueError(f"{name}: batch_size must be at least 1. Got {batch_size}.")
    pair = _pair(data, name, dtype)
    if pair is not None:
        _check(*pair, name)
        batches = TensorBatches(*pair, batch_size, device, order, drop_last, augment, rank, processes)
        if not batches.samples or (order is not None and batches.samples < processes):
            what = f"batch_size={batch_size} with drop_last" if drop_last else f"{processes} processes"
            raise ValueError(f"{name}: {len(pair[0])} samples make no batch for {what}.")
        return batches
    if isinstance(data, DataLoader):
        return LoaderBatches(loader_of(data), name, device, augment)
    if isinstance(data, Dataset):
        shuffled = order is not None and not isinstance(data, IterableDataset)
        loader: DataLoader = DataLoader(data, batch_size, shuffle=shuffled, generator=order, drop_last=drop_last)
        return LoaderBatches(loader_of(loader), name, device, augment)
    raise TypeError(
        f"{name}: expected a pair (x, y) of tensors, an object with .x and .y, a Dataset or a DataLoader. "
        f"Got {type(data).__name__}."
        + " Its parts are .train, .validation and .test."
        * (hasattr(data, "train") and hasattr(data, "test"))
    )


@contextmanager
def explaining(batches: Batches) -> Iterator[None]:
    """Raise what torch says of a CSR tensor in a layer that does not read it as a `TypeError` that says what does."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).partition("\n")[0]
        if not (isinstance(batches, TensorBatches) and is_sparse_rows(batches.x) and "sparse" in text.lower()):
            raise
        raise TypeError(
            "x must be dense, x.to_dense(), as a layer of the model does not read CSR: Linear, SparseLinear and "
            f"MaskedLinear do. Got torch.sparse_csr ({text})."
        ) from error


def augmenting(augment: Augment | None, generator: torch.Generator) -> Callable[[Tensor], Tensor] | None:
    """`augment(x)` or `augment(x, generator=...)`, whichever it takes, as a function of x alone."""
    if augment is None or "generator" not in inspect.signature(augment).parameters:
        return augment
    return lambda x: augment(x, generator=generator)


def _pair(data: Any, name: str, dtype: torch.dtype | None) -> tuple[Tensor, Tensor] | None:
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        data = data.tensors
    elif hasattr(data, "x") and hasattr(data, "y"):
        data = (data.x, data.y)
    if not (isinstance(data, tuple | list) and len(data) == 2):
        return None
    if is_scipy_sparse(data[0]):
        data = (sparse_rows(data[0], dtype), data[1])
    for part, letter in zip(data, "xy", strict=True):
        if not isinstance(part, Tensor):
            hint = f" torch.as_tensor({letter}) is one." if hasattr(part, "__array__") else ""
            raise TypeError(f"{name}: {letter} must be a tensor. Got {type(part).__name__}.{hint}")
    if data[0].layout in OTHER_LAYOUTS:
        raise TypeError(f"{name}: x must be dense or CSR: x.to_sparse_csr(). Got {data[0].layout}.")
    if is_sparse_rows(data[1]) or data[1].layout in OTHER_LAYOUTS:
        raise TypeError(f"{name}: y must be dense: y.to_dense(). Got {data[1].layout}.")
    return data[0], data[1]


def _check(x: Tensor, y: Tensor, name: str) -> None:
    if x.dim() == 0 or y.dim() == 0 or len(x) != len(y):
        raise ValueError(f"{name}: x and y must have as many rows. Got shapes {tuple(x.shape)} and {tuple(y.shape)}.")
    if not len(x):
        raise ValueError(f"{name}: there are no samples.")
    for part, letter in ((x.values() if is_sparse_rows(x) else x, "x"), (y, "y")):
        if part.is_floating_point() and not _is_finite(part):
            bad = int((~part.isfinite()).sum())
            raise ValueError(f"{name}: {letter} must be finite. {bad} of {part.numel()} values are NaN or Inf.")


def _is_finite(x: Tensor) -> bool:
    if not x.numel():
        return True
    low, high = x.detach().aminmax()  # NaN shows in both; one pass, 20 times faster than isfinite().all()
    return bool(low.isfinite()) and bool(high.isfinite())
