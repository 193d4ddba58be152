"""Sparse layers one after another as one function of the input, the values and the biases, with its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from filigree.ops.chain import Chain, Link, chain_backward, chain_forward
from filigree.ops.curves import SMOOTH
from filigree.ops.dropout import dropout
from filigree.ops.memory import SHORT
from filigree.ops.sparse import linear
from filigree.ops.transforms import batched_gradients, gradients, transforming


def linear_chain(chain: Chain, x: Tensor, by_feature: bool = True) -> Tensor:
    """`dropout(relu(x W^T + bias))`, or another activation, for each of the links in turn, in one call of the kernels.

    Args:
        chain: at least one link; it fits x's type, or float32 where x has 16 bits (`Chain.fits`).
        x: `(batch, in)`, floating-point, on the CPU, with memory of its own (`filigree.ops.memory.in_memory`).
        by_feature: as in `filigree.ops.linear`.

    Returns:
        `(batch, out)`, equal to `link_by_link`. The backward pass is one call, too.
    """
    if not torch.is_grad_enabled():
        return chain_forward(chain, x, by_feature)[0]
    return _LinearChain.apply(x, chain, by_feature, *chain.parameters)


def link_by_link(links: Sequence[Link], x: Tensor) -> Tensor:
    """`linear_chain` a layer at a time, by operations that can be differentiated any number of times."""
    for link in links:
        x = linear(link.pattern, link.values.reshape(-1), link.bias, x, link.relu)
        if link.curve:
            x = SMOOTH[link.curve](x)
        if link.drop:
            x = dropout(x.t().contiguous().t(), link.drop, link.seed)
    return x


class _LinearChain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chain: Chain, by_feature: bool, *parameters: Tensor) -> Tensor:
        y, kept = chain_forward(chain, x, by_feature, keep=True)
        ctx.save_for_backward(x, kept, y if chain[-1].relu else None, *parameters)
        ctx.chain = chain
        return y

    @staticmethod
    @batched_gradients
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, y, *parameters = ctx.saved_tensors
        need_input, _, _, *needs = ctx.needs_input_grad
        if torch.is_grad_enabled() or transforming():  # the gradient itself is to be differentiated, or is batched
            dx, *rest = gradients(
                lambda x, *parameters: link_by_link(_with(ctx.chain, parameters), x), (x, *parameters),
                (need_input, *needs), dy,
            )  # fmt: skip
            return dx, None, None, *rest
        chain: Chain = ctx.chain
        if not all(map(is_, parameters, chain.parameters)):  # hooks on saved tensors made others of them
            chain = _with(chain, parameters)
        if not chain.fits(torch.float32 if x.dtype in SHORT else x.dtype):
            raise RuntimeError("SparseSequential: values or biases changed their size between forward and backward.")
        needs_bias = iter(needs[len(chain) :])
        biased = [link.bias is not None and next(needs_bias) for link in chain]
        dx, pairs = chain_backward(chain, x, kept, y, dy, need_input, biased)
        biases = [bias for link, (_, bias) in zip(chain, pairs, strict=True) if link.bias is not None]
        return dx, None, None, *(values for values, _ in pairs), *biases


def _with(chain: Chain, parameters: Sequence[Tensor]) -> Chain:
    """The links with other values and biases, as `Chain.parameters` has them."""
    biases = iter(parameters[len(chain) :])
    return Chain(
        link._replace(values=values, bias=None if link.bias is None else next(biases))
        for link, values in zip(chain, parameters, strict=False)
    )
