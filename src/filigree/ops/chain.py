"""Sparse layers one after another: their forward and their backward pass in one call of the kernels each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from filigree.ops._load import kernels
from filigree.ops.addresses import NUMBERS, address, index, strided
from filigree.ops.curves import CURVES
from filigree.ops.memory import check_activations, contiguous, new_matrix, resolved
from filigree.ops.pattern import Pattern


class Link(NamedTuple):
    """A layer of a chain: `dropout(relu(x W^T + bias))`, or another activation in place of ReLU.

    `values`, `nnz` numbers of any shape, are W's at `pattern`. `curve` is one of `filigree.ops.curves.SMOOTH`, but not
    of the last layer. `drop` is the probability with which dropout zeroes a number, after an activation only; the
    numbers are those that `filigree.ops.dropout` draws from `seed` for a feature-major matrix.
    """

    pattern: Pattern
    values: Any
    bias: Tensor | None
    relu: bool = False
    drop: float = 0.0
    seed: int = 0
    curve: str = ""

    @property
    def is_activated(self) -> bool:
        return self.relu or bool(self.curve)


class Chain(tuple[Link, ...]):
    """Links that run many times: what the kernels take of them is kept, and made anew where a tensor has moved."""

    def __init__(self, links: Iterable[Link]) -> None:
        biased = [link for link in self if link.bias is not None]
        self.parameters: list[Any] = [*(link.values for link in self), *(link.bias for link in biased)]
        self._sizes = [*(link.pattern.nnz for link in self), *(link.pattern.rows for link in biased)]
        self._tensors = [*self.parameters, *(part for link in self for part in link.pattern)]
        self._kept: tuple[list[int], list[Any]] = [], []  # addresses, and the kernels' layers there
        self.has_dropout = any(link.drop for link in self)

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether values and biases are of this type, contiguous, and as many as the patterns have room for."""
        parameters = self.parameters
        return (
            list(map(Tensor.numel, parameters)) == self._sizes
            and all(map(Tensor.is_contiguous, parameters))
            and all(parameter.dtype is dtype for parameter in parameters)
        )

    def with_seeds(self, seeds: Iterable[int]) -> Chain:
        """The same chain with other random numbers for the dropout of each link."""
        _, layers = self.packed()
        new = Chain(link._replace(seed=seed) for link, seed in zip(self, seeds, strict=True))
        new._kept = self._kept[0], [(*layer[:-1], link.seed % 2**64) for layer, link in zip(layers, new, strict=True)]
        return new

    def packed(self) -> tuple[list[Tensor], list[Any]]:
        """As `_packed`."""
        addresses = list(map(Tensor.data_ptr, self._tensors))
        before, layers = self._kept
        if addresses == before:
            return self.parameters, layers
        held, layers = _packed(tuple(self))
        if all(map(is_, held, self.parameters)):  # not copies of them
            self._kept = addresses, layers
        return held, layers


def chain_forward(
    links: Sequence[Link], x: Tensor, by_feature: bool = True, keep: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the output `(batch, out)` and, with `keep`, what `chain_backward` needs of the layers between.

    Args:
        x: `(batch, in)`, float32 or float64 as the values, on the CPU, in any memory order; or bfloat16 or float16
            where the values are float32. All activations are then in that type, sums, values and biases in float32.
        by_feature: whether the output's strides are `(1, batch)`; else it is contiguous.
    """
    if type(links) is not Chain:  # of which `fits` was asked
        check_activations(links[0].values, x)
    x, batch, rows = resolved(x), x.shape[0], links[-1].pattern.rows
    held, layers = _packed(links)
    y = new_matrix(x, batch, rows, by_column=by_feature)
    stored = NUMBERS[x.dtype]
    kept = new_matrix(x, kernels.kept_numbers(stored, layers, batch)) if keep and len(links) > 1 else None
    kernels.chain(stored, layers, batch, strided(x), strided(y), address(kept))
    del held
    return y, kept


def chain_backward(
    links: Sequence[Link],
    x: Tensor,
    kept: Tensor | None,
    y: Tensor | None,
    dy: Tensor,
    need_input: bool,
    need_bias: Sequence[bool],
) -> tuple[Tensor | None, list[tuple[Tensor, Tensor | None]]]:
    """Gradients of the input, and of each layer's values and bias.

    Args:
        x, kept: as `chain_forward` took and gave them.
        y: its output; None where the last layer has no ReLU.
        dy: the output's gradient `(batch, out)`, in any memory order.
        need_input, need_bias: whether these gradients are wanted; else they are None.
    """
    check_activations(links[0].values, x, dy)
    x, dy, batch = resolved(x), resolved(dy), dy.shape[0]
    y = None if y is None else resolved(y)
    held, layers = _packed(links)
    gradients = [
        (torch.empty_like(held[i]), held[i].new_empty(link.pattern.rows) if need else None)
        for i, (link, need) in enumerate(zip(links, need_bias, strict=True))
    ]
    dx = None
    if need_input:
        by_feature = x.stride(0) == 1 and batch > 1
        dx = new_matrix(x, batch, x.shape[1], by_column=by_feature)
    kernels.chain_backward(
        NUMBERS[dy.dtype], layers, batch, strided(x), address(kept), strided(y), strided(dy), strided(dx),
        [(values.data_ptr(), address(bias)) for values, bias in gradients],
    )  # fmt: skip
    return dx, gradients


def _packed(links: Sequence[Link]) -> tuple[list[Tensor], list[Any]]:
    """The tensors that must live as long as the addresses, values first, and the kernels' layers."""
    if type(links) is Chain:
        return links.packed()
    values = [contiguous(link.values) for link in links]
    biases = [None if link.bias is None else contiguous(link.bias) for link in links]
    layers = [
        (
            index(link.pattern), v.data_ptr(), address(b), link.relu, CURVES.index(link.curve), link.drop,
            link.seed % 2**64,
        )
        for link, v, b in zip(links, values, biases, strict=True)
    ]  # fmt: skip
    return [*values, *(bias for bias in biases if bias is not None)], layers
