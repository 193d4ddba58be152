"""LSTM and GRU as loops over time steps, so that their products with weights may be of another kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class LoopedRNN(nn.Module):
    """What they share: the walk through layers, directions and time steps. Attributes are those of `nn.RNNBase`.

    Subclasses implement `_product`: the product of `x` `(..., in)` with the weights `part` ("ih" or "hh") of a layer
    and direction (`suffix`, "_l0_reverse"), bias included.
    """

    _cell: Any

    def _product(self, x: Tensor, part: str, suffix: str) -> Tensor:
        raise NotImplementedError

    def _steps(self, x: Tensor, states: list[Tensor], suffix: str, reverse: bool) -> tuple[Tensor, list[Tensor]]:
        """One layer in one direction: x `(time, batch, in)` to `(time, batch, hidden)` and the last states."""
        from_input, out = self._product(x, "ih", suffix), []
        for part in reversed(from_input.unbind(0)) if reverse else from_input.unbind(0):
            states = self._cell(part, self._product(states[0], "hh", suffix), states)
            out.append(states[0])
        return torch.stack(out[::-1] if reverse else out), states

    def _walk(self, x: Any, given: list[Tensor] | None, count: int) -> tuple[Tensor, list[Tensor]]:
        me: Any = self
        if isinstance(x, PackedSequence):
            raise TypeError(f"{type(self).__name__}: packed sequences are not supported. Pad them instead.")
        if x.shape[-1] != me.input_size or x.dim() not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: the input must be (time, batch, {me.input_size}), batch first if so made, or "
                f"without a batch. Got {tuple(x.shape)}."
            )
        alone = x.dim() == 2
        if alone:
            x = x.unsqueeze(1)
            given = None if given is None else [part.unsqueeze(1) for part in given]
        elif me.batch_first:
            x = x.transpose(0, 1)
        directions = 2 if me.bidirectional else 1
        if given is None:
            given = [x.new_zeros(me.num_layers * directions, x.shape[1], me.hidden_size)] * count
        last: list[list[Tensor]] = []
        for layer in range(me.num_layers):
            sides = []
            for side in range(directions):
                number = layer * directions + side
                suffix = f"_l{layer}" + ("_reverse" if side else "")
                y, states = self._steps(x, [part[number] for part in given], suffix, bool(side))
                sides.append(y)
                last.append(states)
            x = torch.cat(sides, -1)
            if me.dropout and layer < me.num_layers - 1:
                x = nn.functional.dropout(x, me.dropout, me.training)
        finals = [torch.stack([states[part] for states in last]) for part in range(count)]
        if alone:
            return x.squeeze(1), [part.squeeze(1) for part in finals]
        return (x.transpose(0, 1) if me.batch_first else x), finals


def lstm_cell(from_input: Tensor, from_state: Tensor, states: list[Tensor]) -> list[Tensor]:
    """Hidden and cell state after one step, from the products with input and hidden state."""
    i, f, g, o = (from_input + from_state).chunk(4, -1)
    c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
    return [o.sigmoid() * c.tanh(), c]


def gru_cell(from_input: Tensor, from_state: Tensor, states: list[Tensor]) -> list[Tensor]:
    """The hidden state after one step, from the products with input and hidden state."""
    r, z, n = from_input.chunk(3, -1)
    of_r, of_z, of_n = from_state.chunk(3, -1)
    update = (z + of_z).sigmoid()
    return [(1 - update) * (n + (r + of_r).sigmoid() * of_n).tanh() + update * states[0]]
