"""Recurrent networks stand in an ONNX file in plain torch: the time steps of the example, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class UnrolledRNN(nn.Module):
    """It runs a `LoopedRNN` on sequences of one length: `(time, batch, in)`, `(batch, time, in)` or `(time, in)`.

    Args:
        product: the RNN's `_product`, in plain torch.
    """

    form = "time steps, unrolled"

    def __init__(self, rnn: Any, product: Callable[[Tensor, str, str], Tensor], is_lstm: bool) -> None:
        super().__init__()
        self.rnn, self.product, self.is_lstm = rnn, product, is_lstm

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        rnn: Any = self.rnn
        if not isinstance(x, Tensor):
            raise TypeError("packed sequences cannot be exported.")
        alone = x.dim() == 2
        x = x.unsqueeze(1) if alone else x.transpose(0, 1) if rnn.batch_first else x
        count, sides = (2 if self.is_lstm else 1), (2 if rnn.bidirectional else 1)
        if hx is None:
            given = [x.new_zeros(rnn.num_layers * sides, x.shape[1], rnn.hidden_size)] * count
        else:
            given = [part.unsqueeze(1) if alone else part for part in (hx if self.is_lstm else [hx])]
        last: list[list[Tensor]] = []
        for layer in range(rnn.num_layers):
            outs = []
            for side in range(sides):
                suffix = f"_l{layer}" + ("_reverse" if side else "")
                states = [part[layer * sides + side] for part in given]
                out, states = self._steps(x, states, suffix, bool(side))
                outs.append(out)
                last.append(states)
            x = torch.cat(outs, -1)
        finals = [torch.stack([states[part] for states in last]) for part in range(count)]
        if alone:
            x, finals = x.squeeze(1), [part.squeeze(1) for part in finals]
        elif rnn.batch_first:
            x = x.transpose(0, 1)
        return x, (tuple(finals) if self.is_lstm else finals[0])

    def _steps(self, x: Tensor, states: list[Tensor], suffix: str, reverse: bool) -> tuple[Tensor, list[Tensor]]:
        rnn: Any = self.rnn
        inputs = self.product(x, "ih", suffix).unbind(0)
        out: list[Any] = [None] * len(inputs)
        for number in range(len(inputs))[:: -1 if reverse else 1]:
            products = inputs[number], self.product(states[0], "hh", suffix)
            if rnn.has_gates:
                position = len(inputs) - number if reverse else number + 1
                states = rnn.gates[suffix](*products, states, position)
            else:
                states = rnn._cell(*products, states)
            out[number] = states[0]
        return torch.stack(out), states
