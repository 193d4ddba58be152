"""The weights of LSTM and GRU as a loop over time reads them: the gates of each padded to whole panels.

And by how much the outputs change when products are rounded to bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.computed_weights import computed_tensors
from filigree.nn.rnn import suffixes
from filigree.nn.structured.structured_rnn import StructuredRNN
from filigree.ops.int8 import int8_inputs
from filigree.ops.panel_weights import PANEL, padded
from filigree.optimize.weights import LayerWeight, weight_of

_MOST_VECTORS = 2048  # of inputs that errors are measured by


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
    """The rows by panels of hidden units, padded with zeros; of each panel the rows of all gates, one after another."""

    def by_gates(rows: Tensor | None) -> Tensor | None:
        if rows is None:
            return None
        gates = rows.view(-1, hidden, *rows.shape[1:])
        out = gates.new_zeros(len(gates), padded(hidden), *rows.shape[1:])
        out[:, :hidden] = gates
        return out.unflatten(1, (-1, PANEL)).transpose(0, 1).flatten(0, 2)

    scale = None if weight.scale is None else weight.scale.expand(len(weight.matrix))
    matrix = by_gates(weight.matrix)
    assert matrix is not None
    return LayerWeight(matrix, by_gates(weight.bias), by_gates(weight.integers), by_gates(scale), weight.relu)


@torch.no_grad()
def recurrent_error(layers: list[list[Direction]], lstm: bool, x: Tensor, rounded: LayerWeight | None = None) -> float:
    """By how much the outputs for `x` (batch, time, inputs) change with products of bytes, `|y_int8 - y| / |y|`.

    Args:
        rounded: the weight of the product that is one of bytes; None: all are.
    """

    def product(weight: LayerWeight, x: Tensor) -> Tensor:
        return _int8_product(weight, x) if rounded is None or weight is rounded else _product(weight, x)

    x = x[: max(1, _MOST_VECTORS // max(1, x.shape[1]))]
    exact, ours = (_outputs(layers, lstm, x, each) for each in (_product, product))
    size = float(exact.norm())
    error = float((ours - exact).norm()) / size if size else 0.0
    return error if error == error else float("inf")


def _product(weight: LayerWeight, x: Tensor) -> Tensor:
    return F.linear(x, weight.matrix, weight.bias)


def _int8_product(weight: LayerWeight, x: Tensor) -> Tensor:
    integers, scale = weight.in_int8()
    rounded = int8_inputs(x.flatten(0, -2)).dequantised().view(x.shape)
    return F.linear(rounded, integers * scale[:, None], weight.bias)


def _outputs(
    layers: list[list[Direction]], lstm: bool, x: Tensor, product: Callable[[LayerWeight, Tensor], Tensor]
) -> Tensor:
    """The last layer's outputs `(batch, time, directions x hidden)`, in plain torch."""
    for directions in layers:
        columns = []
        for side, direction in enumerate(directions):
            times = range(x.shape[1])[:: -1 if side else 1]
            of_inputs = product(direction.inputs, x).unflatten(-1, (-1, 4 if lstm else 3, PANEL))
            h = c = x.new_zeros(len(x), direction.hidden)
            outputs = [h] * x.shape[1]
            for t in times:
                of_states = product(direction.states, h).unflatten(-1, (-1, 4 if lstm else 3, PANEL))
                a = [gate.flatten(-2)[:, : direction.hidden] for gate in of_inputs[:, t].unbind(-2)]
                b = [gate.flatten(-2)[:, : direction.hidden] for gate in of_states.unbind(-2)]
                if lstm:
                    i, f, g, o = (p + q for p, q in zip(a, b, strict=True))
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * c.tanh()
                else:
                    update = (a[1] + b[1]).sigmoid()
                    h = (1 - update) * (a[2] + (a[0] + b[0]).sigmoid() * b[2]).tanh() + update * h
                outputs[t] = h
            columns.append(torch.stack(outputs, 1))
        x = torch.cat(columns, -1)
    return x
