"""The weights of LSTM and GRU as a loop over time reads them: the gates of each padded to whole panels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filigree.computed_weights import computed_tensors
from filigree.nn.rnn import suffixes
from filigree.nn.structured.structured_rnn import StructuredRNN
from filigree.ops.panel_weights import padded
from filigree.optimize.weights import LayerWeight, weight_of


class Direction(NamedTuple):
    """One direction of a layer: the weights of its inputs and of its last outputs."""

    inputs: LayerWeight
    states: LayerWeight
    hidden: int


def layers_of(rnn: Any) -> list[list[Direction]] | None:
    """The layers of an LSTM or GRU, of torch or with products of other kinds, by direction; None: it is none.

    Taken are those that read batches first, without projections, with weights in float32.
    """
    if type(rnn) not in (nn.LSTM, nn.GRU, StructuredRNN) or computed_tensors(rnn):
        return None
    if not rnn.batch_first or rnn.proj_size or getattr(rnn, "has_gates", False):
        return None
    directions = []
    for suffix in suffixes(rnn):
        weights = [_weight(rnn, part, suffix) for part in ("ih", "hh")]
        if weights[0] is None or weights[1] is None:
            return None
        directions.append(Direction(weights[0], weights[1], rnn.hidden_size))
    count = 2 if rnn.bidirectional else 1
    return [directions[i : i + count] for i in range(0, len(directions), count)]


def _weight(rnn: Any, part: str, suffix: str) -> LayerWeight | None:
    bias = getattr(rnn, f"bias_{part}{suffix}").detach() if rnn.bias else None
    if not isinstance(rnn, StructuredRNN):
        matrix = getattr(rnn, f"weight_{part}{suffix}").detach()
        if matrix.dtype is not torch.float32 or not matrix.is_cpu:
            return None
        return _by_gates(LayerWeight(matrix, bias), rnn.hidden_size)
    product = weight_of(rnn.products[part + suffix])
    if product is None or product[1].relu or product[1].bias is not None:
        return None
    return _by_gates(replace(product[1], bias=bias), rnn.hidden_size)


def _by_gates(weight: LayerWeight, hidden: int) -> LayerWeight:
    """The rows of each gate padded to whole panels."""

    def by_gates(rows: Tensor | None) -> Tensor | None:
        if rows is None:
            return None
        gates = rows.view(-1, hidden, *rows.shape[1:])
        out = gates.new_zeros(len(gates), padded(hidden), *rows.shape[1:])
        out[:, :hidden] = gates
        return out.flatten(0, 1)

    scale = None if weight.scale is None else weight.scale.expand(len(weight.matrix))
    matrix = by_gates(weight.matrix)
    assert matrix is not None
    return LayerWeight(matrix, by_gates(weight.bias), by_gates(weight.integers), by_gates(scale), weight.relu)
