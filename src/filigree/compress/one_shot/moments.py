"""What products read when a network runs on data: chunks of inputs over all calls, and their second moments."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration, owned
from filigree.compress.one_shot.products import WIDEST, Product
from filigree.compress.one_shot.recurrence import Call
from filigree.convert import inference_context, run_on
from filigree.modes import without_shortcuts
from filigree.outputs import tensors_in

CHUNK = 64  # samples that a network computes at a time
MOST_ROWS = 16_384  # that a product's moments are taken from, at most
NUMBERS = 2**27  # of the moments that are collected in one pass over the data, at most: a gigabyte


class _ReachedError(BaseException):
    """The module whose inputs are wanted has been called; nothing on its way catches it."""


def parts_of(data: Calibration) -> list[Calibration]:
    """The data in chunks, each to be run by itself."""
    smaller = copy.copy(data)
    smaller.chunk = min(data.chunk, CHUNK)
    return [data.with_inputs([chunk]) for chunk in smaller.chunks()]


def arguments_of(
    model: nn.Module, name: str, x: Calibration, most: int | None = None, who: str = "OneShot"
) -> list[Call]:
    """The arguments of each call of a module while the model runs on x; `most` calls, behind which the run ends."""
    calls: list[Call] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(owned((args, kwargs)))  # what comes after may change them in place
        if len(calls) == most:
            raise _ReachedError

    hook = (model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True) for _ in range(1))
    with inference_context(model, hook), without_shortcuts(), suppress(_ReachedError):
        run_on(model, x, who)
    return calls


def order_of(
    model: nn.Module, names: Sequence[str], chunks: Sequence[Calibration], who: str = "OneShot"
) -> dict[str, int]:
    """How often each module runs on a chunk, at most, in the order in which they run first; those that do not run are
    left out.
    """
    most: dict[str, int] = {}
    counts: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return hook

    hooks = (model.get_submodule(name).register_forward_pre_hook(count(name)) for name in names)
    with inference_context(model, hooks), without_shortcuts():
        for x in chunks:
            counts.clear()
            run_on(model, x, who)
            most |= {name: max(count, most.get(name, 0)) for name, count in counts.items()}
    return most


@dataclass
class ProductMoments:
    """Of the columns of a product in two networks: x in the original, x' in the one that is being changed.

    Attributes:
        own: `E[x' x'^T]`, of each group `(columns, columns)`, float64. cross: `E[x' x^T]`.
        mean, mean_before: of x' and of x, `(groups, columns)`: they are taken off where the product has a bias that can
            take them over, else they are zero.
        count: how many rows they are of.
    """

    own: Tensor
    cross: Tensor
    mean: Tensor
    mean_before: Tensor
    count: int


class _Sums:
    """Running sums of rows, less those of the first chunk's means."""

    def __init__(self, columns: slice) -> None:
        self.columns, self.count = columns, 0
        self.parts: list[Tensor] = []

    def add(self, now: Tensor, before: Tensor) -> None:
        now, before = (rows[:, :, self.columns] for rows in (now, before))
        if now.dtype != torch.float64:
            now, before = now.float(), before.float()
        if not self.count:
            self.shift = now.mean(1, keepdim=True), before.mean(1, keepdim=True)
        same = torch.equal(now, before)
        now, before = now - self.shift[0], before - self.shift[1]
        own = now.transpose(1, 2) @ now
        parts = [own, own if same else now.transpose(1, 2) @ before, now.sum(1), before.sum(1)]
        if not self.count:
            self.parts = [part.double() for part in parts]
        else:
            for total, part in zip(self.parts, parts, strict=True):
                total += part
        self.count += now.shape[1]

    def moments(self, centred: bool) -> ProductMoments:
        own, cross, mean, mean_before = (part.cpu() / self.count for part in self.parts)
        shift, shift_before = (shift[:, 0].double().cpu() for shift in self.shift)
        own -= mean.unsqueeze(2) * mean.unsqueeze(1)
        cross -= mean.unsqueeze(2) * mean_before.unsqueeze(1)
        mean, mean_before = mean + shift, mean_before + shift_before
        if centred:
            return ProductMoments(own, cross, mean, mean_before, self.count)
        own += mean.unsqueeze(2) * mean.unsqueeze(1)
        cross += mean.unsqueeze(2) * mean_before.unsqueeze(1)
        return ProductMoments(own, cross, torch.zeros_like(mean), torch.zeros_like(mean), self.count)


def moments_of(
    product: Product,
    name: str,
    networks: tuple[nn.Module, nn.Module],
    chunks: Sequence[Calibration],
    runs: int,
    seed: int,
    who: str = "OneShot",
) -> Iterator[tuple[slice, ProductMoments]]:
    """The moments of a product, part by part of its columns; one pass over the data for as many as there is room for.

    Args:
        networks: the original, and the one that is being changed. runs: how often a pass calls the module.

    At most `MOST_ROWS` rows are taken, four for each column and at least 4,096, drawn by the seed. Where a module reads
    other numbers of samples in the two networks, as the experts behind a router do, x is x' for it.
    """
    modules = [network.get_submodule(name) for network in networks]
    groups, _, columns = product.matrix(modules[0]).shape
    width = max(product.taps, WIDEST // product.taps * product.taps)
    parts = [slice(first, min(first + width, columns)) for first in range(0, columns, width)]
    together = max(1, NUMBERS // (2 * groups * min(width, columns) ** 2))
    most = max(1, min(MOST_ROWS, max(4 * min(width, columns), MOST_ROWS // 4)) // (len(chunks) * runs))
    alike = True  # what the module reads in the two networks
    for first in range(0, len(parts), together):
        sums = [_Sums(part) for part in parts[first : first + together]]
        try:
            _add_all(sums, product, name, networks, chunks, runs, seed, most, who, alike)
        except _OtherSamples:
            sums, alike = [_Sums(part) for part in parts[first : first + together]], False
            _add_all(sums, product, name, networks, chunks, runs, seed, most, who, alike)
        for total in sums:
            if not total.count:
                raise ValueError(f"{who}: the data do not reach {name!r}.")
            yield total.columns, total.moments(product.has_bias(modules[0]))


class _OtherSamples(Exception):
    """A module reads other numbers of samples in the two networks."""


def _add_all(
    sums: Sequence[_Sums], product: Product, name: str, networks: tuple[nn.Module, nn.Module],
    chunks: Sequence[Calibration], runs: int, seed: int, most: int, who: str, alike: bool,
) -> None:  # fmt: skip
    """One pass over the data; `alike`: refuse modules that read other samples in the networks, else x is x'."""
    modules = [network.get_submodule(name) for network in networks]
    for number, x in enumerate(chunks):
        before, now = (arguments_of(network, name, x, runs, who) for network in networks)
        if alike and list(map(_sizes, before)) != list(map(_sizes, now)):
            raise _OtherSamples
        if not alike:
            before = now = now or before
        for call, (was, is_now) in enumerate(zip(before, now, strict=True)):
            draw = seed + 1009 * number + call
            rows = [
                product.rows(owner, arguments, most, torch.Generator().manual_seed(draw))
                for owner, arguments in zip(modules, (was, is_now), strict=True)
            ]
            for total in sums:
                total.add(now=rows[1], before=rows[0])


def _sizes(call: Call) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_in(call[0])]
