"""Recurrent networks step by step, in plain torch: the steps of the example's length stand in the file one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from filigree.nn.noisy.noisy_rnn import NoisyGates, NoisyLSTMGates
from filigree.nn.rnn import GatedRNN, LoopedRNN, States, is_lstm
from filigree.nn.structured.structured_rnn import StructuredRNN
from filigree.ops.noisy_rnn import gru_reference, lstm_reference


class PlainGates(nn.Module):
    """Noisy gates in eval mode: noise is its mean."""

    form = "expectation of the noise"

    def __init__(self, gates: NoisyGates) -> None:
        super().__init__()
        self.gates = gates

    def forward(self, from_input: Tensor, from_state: Tensor, states: States, t: int = 1) -> States:
        gates = self.gates
        p, xi = gates.each_p(), gates.xi(states[0])
        if isinstance(gates, NoisyLSTMGates):
            return list(lstm_reference(from_input + from_state, states[1], p, xi, gates.numbers))
        return [gru_reference(from_input, from_state, states[0], p, xi, gates.numbers)]


class UnrolledRNN(nn.Module):
    """A `LoopedRNN` on sequences of one length: `(time, batch, in)`, batch first if so made, or without a batch."""

    def __init__(self, rnn: LoopedRNN) -> None:
        super().__init__()
        self.rnn = rnn
        self.form = "time steps, unrolled"

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        rnn: Any = self.rnn
        if not isinstance(x, Tensor):
            raise TypeError("packed sequences cannot be exported.")
        alone = x.dim() == 2
        x = x.unsqueeze(1) if alone else x.transpose(0, 1) if rnn.batch_first else x
        count, sides = (2 if is_lstm(rnn) else 1), (2 if rnn.bidirectional else 1)
        if hx is None:
            given = [x.new_zeros(rnn.num_layers * sides, x.shape[1], rnn.hidden_size)] * count
        else:
            given = [part.unsqueeze(1) if alone else part for part in (hx if is_lstm(rnn) else [hx])]
        last: list[States] = []
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
        return x, (tuple(finals) if is_lstm(rnn) else finals[0])

    def _steps(self, x: Tensor, states: States, suffix: str, reverse: bool) -> tuple[Tensor, States]:
        rnn: Any = self.rnn
        product = rnn._product if isinstance(rnn, StructuredRNN) else GatedRNN._product.__get__(rnn)
        inputs = product(x, "ih", suffix).unbind(0)
        out: list[Any] = [None] * len(inputs)
        for number in range(len(inputs))[:: -1 if reverse else 1]:
            products = inputs[number], product(states[0], "hh", suffix)
            if rnn.has_gates:
                position = len(inputs) - number if reverse else number + 1
                states = rnn.gates[suffix](*products, states, position)
            else:
                states = rnn._cell(*products, states)
            out[number] = states[0]
        return torch.stack(out), states
