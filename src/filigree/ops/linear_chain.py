"""Sparse layers one after another as one function of the input, the values and the biases, with its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from filigree.ops.chain import Link, chain_backward, chain_forward
from filigree.ops.dropout import dropout
from filigree.ops.sparse import linear
from filigree.ops.transforms import batched_gradients, gradients, transforming


def linear_chain(links: Sequence[Link], x: Tensor, by_feature: bool = True) -> Tensor:
    """`dropout(relu(x W^T + bias))` for each of the links in turn, in one call of the kernels.

    Args:
        links: at least one; all values and biases of x's type, float32 where that has 16 bits.
        x: `(batch, in)`, floating-point, on the CPU, with memory of its own (`filigree.ops.memory.in_memory`).
        by_feature: as in `filigree.ops.linear`.

    Returns:
        `(batch, out)`, equal to `link_by_link`. The backward pass is one call, too.
    """
    if not torch.is_grad_enabled():
        return chain_forward(links, x, by_feature)[0]
    values, biases = [link.values for link in links], [link.bias for link in links]
    return _LinearChain.apply(x, links, by_feature, *values, *biases)


def link_by_link(links: Sequence[Link], x: Tensor) -> Tensor:
    """`linear_chain` a layer at a time, by operations that can be differentiated any number of times."""
    for link in links:
        x = linear(link.pattern, link.values, link.bias, x, link.relu)
        if link.drop:
            x = dropout(x, link.drop, link.seed)
    return x


class _LinearChain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, links: Sequence[Link], by_feature: bool, *parameters: Tensor | None) -> Tensor:
        y, kept = chain_forward(links, x, by_feature, keep=True)
        ctx.save_for_backward(x, kept, y if links[-1].relu else None, *parameters)
        ctx.links = [link._replace(values=None, bias=None) for link in links]
        return y

    @staticmethod
    @batched_gradients
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, y, *parameters = ctx.saved_tensors
        need_input, _, _, *needs = ctx.needs_input_grad
        count = len(ctx.links)
        if torch.is_grad_enabled() or transforming():  # the gradient itself is to be differentiated, or is batched
            dx, *rest = gradients(
                lambda x, *parameters: link_by_link(_with(ctx.links, parameters), x), (x, *parameters),
                (need_input, *needs), dy,
            )  # fmt: skip
            return dx, None, None, *rest
        links = _with(ctx.links, parameters)
        dx, pairs = chain_backward(links, x, kept, y, dy, need_input, needs[count:])
        return dx, None, None, *(values for values, _ in pairs), *(bias for _, bias in pairs)


def _with(links: Sequence[Link], parameters: Sequence[Any]) -> list[Link]:
    """The links with their values, then their biases."""
    count = len(links)
    return [
        link._replace(values=values, bias=bias)
        for link, values, bias in zip(links, parameters[:count], parameters[count:], strict=True)
    ]
