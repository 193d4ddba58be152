"""Associative recall: shown items one after another, then one of them again, name the one that followed it."""

from __future__ import annotations

import torch
from torch import Tensor

from filigree_papers.data.tasks.sizes import at_least


def associative_recall(
    samples: int, items: int, item_length: int = 3, bits: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences of random items, a query and its answer (Graves et al. 2014, 4.3).

    Moczulski 2019 trains on 2 to 16 items. Each item is `item_length` vectors of `bits` bits. Channel `bits` marks a
    step before each item, channel `bits + 1` a step before and after the query, which equals one item other than the
    last. During the answer the input is zero. Time is `items (item_length + 1) + 2 item_length + 2`.

    Returns:
        x `(samples, time, bits + 2)`, the target `(samples, time, bits)`, and a mask `(samples, time)`, 1 in the last
        `item_length` steps, where the output counts; all float32.
    """
    at_least(1, "associative_recall", samples=samples, item_length=item_length, bits=bits)
    at_least(2, "associative_recall", items=items)
    if items > 2 ** (bits * item_length):
        raise ValueError(
            f"associative_recall: items must be at most {2 ** (bits * item_length)}, as many as there are of "
            f"{item_length} times {bits} bits. Got {items}."
        )
    generator = torch.Generator().manual_seed(seed)
    row, query = torch.arange(samples), torch.randint(0, items - 1, (samples,), generator=generator)
    shown = torch.empty(samples, items, item_length, bits)
    unclear = torch.ones(samples, dtype=torch.bool)
    while unclear.any():  # another item equals the query: rare, unless items are short
        shown[unclear] = shown[unclear].random_(0, 2, generator=generator)
        unclear = (shown == shown[row, query][:, None]).flatten(2).all(2).sum(1) > 1
    before = items * (item_length + 1)
    x = torch.zeros(samples, before + 2 * item_length + 2, bits + 2)
    steps = x[:, :before].view(samples, items, item_length + 1, bits + 2)
    steps[:, :, 0, bits] = 1
    steps[:, :, 1:, :bits] = shown
    x[:, [before, before + item_length + 1], bits + 1] = 1
    x[:, before + 1 : before + item_length + 1, :bits] = shown[row, query]
    target, mask = torch.zeros_like(x[:, :, :bits]), torch.zeros_like(x[:, :, 0])
    target[:, -item_length:] = shown[row, query + 1]
    mask[:, -item_length:] = 1
    return x, target, mask
