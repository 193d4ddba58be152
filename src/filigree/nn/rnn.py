"""LSTM and GRU as loops over time steps, so that their products with weights and their gates may be of other kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from filigree.convert import replace_module
from filigree.nn.capabilities import Capabilities
from filigree.nn.drop_in import share_parameters
from filigree.nn.unrolled_rnn import UnrolledRNN

States = list[Tensor]
R = TypeVar("R", bound="LoopedRNN")


class LoopedRNN(Capabilities, nn.Module):
    """Base of recurrent networks that walk through layers, directions and time steps themselves.

    Arguments, results and the names of sizes are those of `nn.RNNBase`. Inside, sequences are packed: `x` is
    `(total, in)`, the time steps one after another, `sizes` how many sequences each has, never more than the one
    before.

    A submodule `gates`, where there is one, holds modules by suffix that compute the new states from both products, the
    old states and the position in the sequence (from 1; a number, or `(sequences, 1)`), in place of the plain cell.
    """

    _cell: Any = None

    @property
    def has_gates(self) -> bool:
        return "gates" in self._modules

    def label(self) -> str:
        kinds = [gate.kind for gate in self.gates.values() if hasattr(gate, "kind")] if self.has_gates else []  # type: ignore
        return type(self).__name__ + (f"({kinds[0]})" if kinds else "")

    def why_not_prunable(self) -> str | None:
        return None

    def _weight_and_bias(self, part: str, suffix: str) -> tuple[Tensor, Tensor | None]:
        return getattr(self, f"weight_{part}{suffix}"), getattr(self, f"bias_{part}{suffix}", None)

    def _product(self, x: Tensor, part: str, suffix: str) -> Tensor:
        """The product of `x` `(..., in)` with the weights `part` ("ih" or "hh"), bias included.

        The suffix, such as "_l0_reverse", names layer and direction.
        """
        return F.linear(x, *self._weight_and_bias(part, suffix))

    def flatten_parameters(self) -> None:
        """Does nothing: users of `nn.RNNBase` call it."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        if is_lstm(self):
            y, (h, c) = self._walk(input, None if hx is None else list(hx), 2)
            return y, (h, c)
        y, (h,) = self._walk(input, None if hx is None else [hx], 1)
        return y, h

    def _steps(self, x: Tensor, sizes: list[int], states: States, suffix: str, reverse: bool) -> tuple[Tensor, States]:
        """One layer in one direction: its outputs `(total, hidden)` and the last states `(batch, hidden)`."""
        me: Any = self
        cell, positions = me._cell, None
        if self.has_gates:
            cell, positions = me.gates[suffix], _positions(sizes, reverse)
        parts = self._product(x, "ih", suffix).split(sizes)
        out: list[Any] = [None] * len(sizes)
        for number in range(len(sizes))[:: -1 if reverse else 1]:
            size = sizes[number]
            current = [state[:size] for state in states]
            products = parts[number], self._product(current[0], "hh", suffix)
            new = cell(*products, current) if positions is None else cell(*products, current, positions[number])
            out[number] = new[0]
            rest = size < len(states[0])  # sequences that have ended, or not begun
            states = [torch.cat([n, s[size:]]) for n, s in zip(new, states, strict=True)] if rest else new
        return torch.cat(out), states

    def _walk(self, x: Any, given: States | None, count: int) -> tuple[Any, States]:
        """Outputs and final states, in the form in which the input came; `given` the initial states."""
        me: Any = self
        packed, name = isinstance(x, PackedSequence), type(self).__name__
        data = x.data if packed else x
        if data.shape[-1] != me.input_size or (not packed and x.dim() not in (2, 3)):
            raise ValueError(
                f"{name}: the input must be (time, batch, {me.input_size}), batch first if built so, without a batch, "
                f"or packed. Got {tuple(data.shape)}."
            )
        alone = not packed and x.dim() == 2
        if packed:
            sizes = x.batch_sizes.tolist()
            if given is not None and x.sorted_indices is not None:
                given = [part.index_select(1, x.sorted_indices) for part in given]
        else:
            x = x.unsqueeze(1) if alone else x.transpose(0, 1) if me.batch_first else x
            given = [part.unsqueeze(1) for part in given] if alone and given is not None else given
            sizes, data = [x.shape[1]] * x.shape[0], x.reshape(x.shape[0] * x.shape[1], me.input_size)
        if not sizes:
            raise ValueError(f"{name}: the sequence must have at least one time step. Got {tuple(data.shape)}.")
        directions = 2 if me.bidirectional else 1
        shape = (me.num_layers * directions, sizes[0], me.hidden_size)
        if given is None:
            given = [data.new_zeros(shape)] * count
        if len(given) != count:
            raise ValueError(f"{name}: {count} initial states are needed. Got {len(given)}.")
        if wrong := [part for part in given if part.shape != shape]:
            raise ValueError(f"{name}: initial states must be {shape}. Got {tuple(wrong[0].shape)}.")
        last: list[States] = []
        for layer in range(me.num_layers):
            sides = []
            for side in range(directions):
                number = layer * directions + side
                suffix = f"_l{layer}" + ("_reverse" if side else "")
                y, states = self._steps(data, sizes, [part[number] for part in given], suffix, bool(side))
                sides.append(y)
                last.append(states)
            data = torch.cat(sides, -1) if directions > 1 else sides[0]
            if me.dropout and layer < me.num_layers - 1:
                data = nn.functional.dropout(data, me.dropout, me.training)
        finals = [torch.stack([states[part] for states in last]) for part in range(count)]
        if packed:
            if x.unsorted_indices is not None:
                finals = [part.index_select(1, x.unsorted_indices) for part in finals]
            return PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices), finals
        y = data.view(len(sizes), -1, data.shape[-1])
        if alone:
            return y.squeeze(1), [part.squeeze(1) for part in finals]
        return (y.transpose(0, 1) if me.batch_first else y), finals

    def onnx_form(self) -> nn.Module:
        return UnrolledRNN(self, self._product, is_lstm(self))


class GatedRNN(LoopedRNN):
    """Base of networks with plain products and gates of another kind; they extend `nn.LSTM` or `nn.GRU` too."""

    def reset_parameters(self) -> None:
        """Draw new weights and biases; the parameters of the gates stay."""
        me: Any = self
        bound = me.hidden_size**-0.5 if me.hidden_size else 0.0
        for _, parameter in self.named_parameters(recurse=False):
            nn.init.uniform_(parameter, -bound, bound)


def is_lstm(rnn: nn.Module) -> bool:
    return isinstance(rnn, nn.LSTM) or getattr(rnn, "_cell", None) is lstm_cell


def suffixes(rnn: Any) -> list[str]:
    """The names of layers and directions of an `nn.RNNBase`."""
    sides = ["", "_reverse"] if rnn.bidirectional else [""]
    return [f"_l{layer}{side}" for layer in range(rnn.num_layers) for side in sides]


def refuse_projections(rnn: Any, who: str) -> None:
    if getattr(rnn, "proj_size", 0):
        raise ValueError(f"{who}: projections (proj_size) cannot be converted. Got {rnn.proj_size}.")


def like_rnn(kind: type[R], rnn: Any) -> R:
    """An `nn.LSTM` or `nn.GRU` as a looped network of this kind, with the same parameter objects."""
    refuse_projections(rnn, kind.__name__)
    return share_parameters(kind, rnn)


def put_gates(model: nn.Module, name: str, gates: nn.ModuleDict, kinds: tuple[type[R], type[R]]) -> nn.Module:
    """Give the recurrent network called `name` these gates by suffix, and return the network.

    Args:
        kinds: what an `nn.LSTM` and an `nn.GRU` become; a `LoopedRNN` keeps its products.
    """
    rnn = model.get_submodule(name)
    if not isinstance(rnn, LoopedRNN):
        looped = like_rnn(kinds[0 if is_lstm(rnn) else 1], rnn)
        replace_module(model, name, looped)
        rnn = looped
    rnn.gates = gates.train(rnn.training)
    return rnn


def _positions(sizes: list[int], reverse: bool) -> Sequence[Tensor | int]:
    """The position of each time step in its sequences, which in reverse begin at steps of their own."""
    if not reverse:
        return range(1, len(sizes) + 1)
    if len(set(sizes)) == 1:
        return range(len(sizes), 0, -1)
    lengths = torch.tensor([sum(size > i for size in sizes) for i in range(sizes[0])])[:, None]
    return [lengths[:size] - number for number, size in enumerate(sizes)]


def lstm_cell(from_input: Tensor, from_state: Tensor, states: States) -> States:
    """Hidden and cell state after one step, from the products with input and hidden state."""
    i, f, g, o = (from_input + from_state).chunk(4, -1)
    c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
    return [o.sigmoid() * c.tanh(), c]


def gru_cell(from_input: Tensor, from_state: Tensor, states: States) -> States:
    """The hidden state after one step, from the products with input and hidden state."""
    r, z, n = from_input.chunk(3, -1)
    of_r, of_z, of_n = from_state.chunk(3, -1)
    update = (z + of_z).sigmoid()
    return [(1 - update) * (n + (r + of_r).sigmoid() * of_n).tanh() + update * states[0]]
