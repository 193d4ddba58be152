"""LSTM and GRU that begin as a running mean of their inputs (Moczulski 2019, 4.4.3.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from filigree.config import check_choice
from filigree.nn.mollified.mollified_activation import FUNCTIONS, HARD_SIGMOID, mollify
from filigree.nn.mollified.mollified_block import MollifiedModule
from filigree.nn.rnn import GatedRNN, States
from filigree.ops.noise import HALF_NORMAL_MEAN

_TANH = FUNCTIONS[nn.Tanh]


class MollifiedGates(MollifiedModule):
    """Gates of a recurrent layer, drawn towards means g: `f(x + p sigma(x) |xi|)`, f the hard sigmoid (eq. 4.4).

    `sigma(x) = (4 (g - 1/2) - x) / E|xi|`, so that the expectation of f's line is g at p = 1; clipping biases it. With
    t the position in the sequence, from 1: g = 1/t for an LSTM's input gate, 1 - 1/t for its forget gate, 1 for its
    output gate; 1 - 1/t for a GRU's z (torch's; the update gate of Moczulski 2019 is 1 - z), 1 for its r: the state is
    then the mean of the candidates so far. tanh is psi (`mollify`).

    Args:
        hidden: units of the state. c, a: of psi.
        deterministic: E|xi| in place of |xi|, in psi the expectation: gates are exactly g at p = 1.
        recurrent: "fade": products with the state are times 1 - p, so that at p = 1 the order of the inputs does not
            matter; "keep": they are not changed.
        time: "position", or "step": t is the annealing's count of updates.

    Attributes:
        step: the annealing's count of updates. In eval mode p counts as 0; with `expected` the gates are deterministic.
    """

    activations: int
    a: Tensor

    def __init__(
        self, hidden: int, c: float = 1.0, a: tuple[float, float] | float = (-2.0, 2.0), deterministic: bool = False,
        recurrent: Literal["fade", "keep"] = "fade", time: Literal["position", "step"] = "position",
        expected: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice(type(self).__name__, "recurrent", recurrent, ("fade", "keep"))
        check_choice(type(self).__name__, "time", time, ("position", "step"))
        self.c, self.deterministic, self.recurrent, self.time = c, deterministic, recurrent, time
        self.expected, self.step = expected, 1
        shape = (self.activations, hidden)
        start = torch.empty(shape).uniform_(*a) if isinstance(a, tuple) else torch.full(shape, float(a))
        self.register_buffer("a", start)

    def why_not_prunable(self) -> str | None:
        return None

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.p, self.step], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.p, self.step = float(state[0]), int(state[1])

    @property
    def level(self) -> float:
        return self.p if self.training or self.expected else 0.0

    def _gate(self, x: Tensor, mean: Tensor | float) -> Tensor:
        p = self.level
        if not p:
            return HARD_SIGMOID.value(x)
        random = self.training and not self.deterministic
        size = torch.randn_like(x).abs() / HALF_NORMAL_MEAN if random else 1.0
        return HARD_SIGMOID.value(x + p * size * (4 * (mean - 0.5) - x))

    def _tanh(self, x: Tensor, number: int) -> Tensor:
        level = self.c * self.level
        random = self.training and not self.deterministic and level > 0
        return mollify(x, _TANH, level, self.a[number].to(x), torch.randn_like(x) if random else None)

    def _share(self, t: Tensor | int, like: Tensor) -> Tensor | float:
        """1 / t."""
        if self.time == "step":
            return 1.0 / max(1, self.step)
        return 1.0 / t.to(like) if isinstance(t, Tensor) else 1.0 / t

    def _faded(self, from_state: Tensor) -> Tensor:
        return from_state if self.recurrent == "keep" else from_state * (1 - self.level)

    def extra_repr(self) -> str:
        return f"p={self.p:.3g}, c={self.c:g}, recurrent={self.recurrent!r}"


class MollifiedLSTMGates(MollifiedGates):
    """The gates of an LSTM. `a` has a row for the candidate and one for the activation of the cell state."""

    activations = 2

    def forward(self, from_input: Tensor, from_state: Tensor, states: States, t: Tensor | int) -> States:
        i, f, g, o = (from_input + self._faded(from_state)).chunk(4, -1)
        share = self._share(t, i)
        c = self._gate(f, 1 - share) * states[1] + self._gate(i, share) * self._tanh(g, 0)
        return [self._gate(o, 1.0) * self._tanh(c, 1), c]


class MollifiedGRUGates(MollifiedGates):
    """The gates of a GRU. `a` has a row for the candidate."""

    activations = 1

    def forward(self, from_input: Tensor, from_state: Tensor, states: States, t: Tensor | int) -> States:
        (r, z, n), (of_r, of_z, of_n) = from_input.chunk(3, -1), self._faded(from_state).chunk(3, -1)
        update = self._gate(z + of_z, 1 - self._share(t, z))
        return [(1 - update) * self._tanh(n + self._gate(r + of_r, 1.0) * of_n, 0) + update * states[0]]


class MollifiedLSTM(GatedRNN, nn.LSTM):
    """`nn.LSTM` with `MollifiedGates`: parameters, arguments and results are the same.

    At p = 0 an LSTM with the hard sigmoid (eq. 4.4) in its gates, and tanh.
    """


class MollifiedGRU(GatedRNN, nn.GRU):
    """`nn.GRU` with `MollifiedGates`: parameters, arguments and results are the same. See `MollifiedLSTM`."""
