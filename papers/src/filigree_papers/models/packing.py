"""Sequences of tokens: padded ones to packed ones, and one token after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

PADDING, BEGIN, END = range(3)


def pack(x: Tensor, tokens: Tensor, caller: str) -> PackedSequence:
    """What stands before the padding (0) of tokens `(batch, time)`, from x `(batch, time, width)`.

    Raises:
        ValueError: a row of padding alone, in the name of `caller`.
    """
    lengths = (tokens != PADDING).sum(1)
    if not bool(lengths.all()):
        raise ValueError(f"{caller}: each sequence must have a token before its padding (0). Got one of padding alone.")
    return pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)


@torch.no_grad()
def greedy(
    step: Callable[[Tensor, Any], tuple[Tensor, Any]], state: Any, count: int, device: torch.device, most: int
) -> Tensor:
    """The likeliest token at each step, for `count` sentences: `(count, at most most)`, END behind each, then padding.

    Args:
        step: tokens `(count,)` and the state before them to logits `(count, tokens)` and the next state.
        state: the first. most: a sentence that reaches it is cut there, without END.
    """
    token = torch.full((count,), BEGIN, device=device)
    over = torch.zeros_like(token, dtype=torch.bool)
    out: list[Tensor] = []
    while len(out) < most and not bool(over.all()):
        logits, state = step(token, state)
        token = (logits[:, END:].argmax(-1) + END).masked_fill(over, PADDING)  # padding and begin are no words
        over = over | (token == END)
        out.append(token)
    return torch.stack(out, 1)
