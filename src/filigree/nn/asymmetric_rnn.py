"""LSTM and GRU whose products with weights have a sparsified backward pass."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from filigree.nn.asymmetric_linear import Asymmetrical, asymmetric_linear


class _AsymmetricRNN(Asymmetrical):
    """What both share: the walk through layers, directions and time steps."""

    gates: int
    weight_of: Any

    @classmethod
    def like(cls, rnn: Any) -> Self:
        """The same network with the same parameter objects."""
        if rnn.proj_size:
            raise ValueError(f"{cls.__name__}: projections (proj_size) cannot be converted. Got {rnn.proj_size}.")
        with torch.device("meta"):
            made: Any = cls(
                rnn.input_size, rnn.hidden_size, rnn.num_layers, bias=rnn.bias, batch_first=rnn.batch_first,  # type: ignore[call-arg]
                dropout=rnn.dropout, bidirectional=rnn.bidirectional,
            )  # fmt: skip
        for name in dict(made.named_parameters()):
            setattr(made, name, getattr(rnn, name))
        return made

    def _steps(self, x: Tensor, states: list[Tensor], suffix: str, reverse: bool) -> tuple[Tensor, list[Tensor]]:
        """One layer in one direction: x `(time, batch, in)` to `(time, batch, hidden)` and the last states."""
        me: Any = self
        biases = [getattr(me, f"bias_{part}{suffix}") if me.bias else None for part in ("ih", "hh")]
        from_input = asymmetric_linear(x, getattr(me, f"weight_ih{suffix}"), biases[0], self)
        weight, out = getattr(me, f"weight_hh{suffix}"), []
        for part in reversed(from_input.unbind(0)) if reverse else from_input.unbind(0):
            states = self._cell(part, asymmetric_linear(states[0], weight, biases[1], self), states)
            out.append(states[0])
        return torch.stack(out[::-1] if reverse else out), states

    def _cell(self, from_input: Tensor, from_state: Tensor, states: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def _walk(self, x: Any, given: list[Tensor] | None, count: int) -> tuple[Tensor, list[Tensor]]:
        me: Any = self
        if isinstance(x, PackedSequence):
            raise TypeError(f"{type(self).__name__}: packed sequences are not supported. Pad them instead.")
        if x.shape[-1] != me.input_size or x.dim() not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: the input must be (time, batch, {me.input_size}), batch first if so made, or "
                f"without a batch. Got {tuple(x.shape)}."
            )
        self.check_rule()
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

    def _is_exact(self) -> bool:
        me: Any = self
        return not (me.training and torch.is_grad_enabled()) or me.config.rule.is_exact


class AsymmetricLSTM(_AsymmetricRNN, nn.LSTM):
    """`nn.LSTM` with sparsified gradients of its products with weights: delta is that of the four gates together.

    Parameters, arguments and results are those of `nn.LSTM`, which is its dense equivalent and computes its eval mode.
    """

    def forward(self, x: Any, hx: Any = None) -> Any:
        if self._is_exact():
            return nn.LSTM.forward(self, x, hx)
        y, (h, c) = self._walk(x, None if hx is None else list(hx), 2)
        return y, (h, c)

    def _cell(self, from_input: Tensor, from_state: Tensor, states: list[Tensor]) -> list[Tensor]:
        i, f, g, o = (from_input + from_state).chunk(4, -1)
        c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
        return [o.sigmoid() * c.tanh(), c]


class AsymmetricGRU(_AsymmetricRNN, nn.GRU):
    """`nn.GRU` with sparsified gradients of its products with weights: delta is that of the three gates together.

    Parameters, arguments and results are those of `nn.GRU`, which is its dense equivalent and computes its eval mode.
    """

    def forward(self, x: Any, hx: Any = None) -> Any:
        if self._is_exact():
            return nn.GRU.forward(self, x, hx)
        y, (h,) = self._walk(x, None if hx is None else [hx], 1)
        return y, h

    def _cell(self, from_input: Tensor, from_state: Tensor, states: list[Tensor]) -> list[Tensor]:
        r, z, n = from_input.chunk(3, -1)
        of_r, of_z, of_n = from_state.chunk(3, -1)
        update = (z + of_z).sigmoid()
        return [(1 - update) * (n + (r + of_r).sigmoid() * of_n).tanh() + update * states[0]]
