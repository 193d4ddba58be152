"""Padded sequences to packed ones."""

from __future__ import annotations

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

PADDING = 0


def pack(x: Tensor, tokens: Tensor, caller: str) -> PackedSequence:
    """What stands before the padding (0) of tokens `(batch, time)`, from x `(batch, time, width)`.

    Raises:
        ValueError: a row of padding alone, in the name of `caller`.
    """
    lengths = (tokens != PADDING).sum(1)
    if not bool(lengths.all()):
        raise ValueError(f"{caller}: each sequence must have a token before its padding (0). Got one of padding alone.")
    return pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
