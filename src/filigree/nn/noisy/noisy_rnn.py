"""LSTM and GRU with noisy gates (Moczulski 2019, 4.3): sigmoid and tanh are noisy hard sigmoids and hard tanhs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from filigree.nn.capabilities import Capabilities
from filigree.nn.drop_in import share_parameters
from filigree.nn.noisy.noisy_activations import Kind, WithNoise
from filigree.nn.noisy.noisy_onnx import PlainGRUGates, PlainLSTMGates
from filigree.nn.rnn import GatedRNN, States
from filigree.ops.noise import Seed, draw_seed, runs_kernels
from filigree.ops.noisy_rnn import gru_reference, gru_step, gru_steps, lstm_reference, lstm_steps


class NoisyGates(WithNoise):
    """Base of the noisy activations of a recurrent cell: they map both products and the old states to the new states.

    Args:
        hidden: units of the state. per_unit: p has a number for each unit and activation, else one for each activation.
        Others: as in `filigree.nn.NoisyHardTanh`.
    """

    activations: int

    def __init__(
        self, hidden: int, per_unit: bool = True, kind: Kind = "NAH", alpha: float = 0.9, c: float = 0.5,
        sigma: float = 0.05, p: float | None = None, learn_p: bool = True, noise: str | Distribution = "normal",
    ) -> None:  # fmt: skip
        shape = (self.activations, hidden if per_unit else 1)
        super().__init__(kind, alpha, c, sigma, p, shape, learn_p, noise, False)
        self.hidden = hidden

    def each_p(self) -> Tensor:
        return self.p.expand(self.activations, self.hidden)

    def is_native(self, x: Tensor) -> bool:
        return (
            runs_kernels(x)
            and (x.dtype, x.device) == (self.p.dtype, self.p.device)
            and (self.noise == "normal" or not self.draws)
        )

    def seed(self) -> Seed:
        """The seed of the noise of one call; in eval mode the mean that stands for the noise."""
        if self.draws:
            return draw_seed()
        return self.mean if self.kind in ("NAN", "NAH") else 0.0

    def xi(self, like: Tensor) -> list[Tensor | float]:
        """Noise for each activation, drawn by torch in the shape of `like`."""
        if not self.draws:
            return [self.mean if self.kind in ("NAN", "NAH") else 0.0] * self.activations
        return [self.sample(like) for _ in range(self.activations)]


class NoisyLSTMGates(NoisyGates):
    """The gates of an LSTM: i, f, o are noisy hard sigmoids, the candidate and the cell's output noisy hard tanhs."""

    activations = 5

    def forward(self, from_input: Tensor, from_state: Tensor, states: States, t: Tensor | int = 1) -> States:
        pre, p = from_input + from_state, self.each_p()
        if self.is_native(pre):
            h, _, c = lstm_steps(pre, None, states[0], states[1], p, self.numbers, self.seed(), [len(pre)])
            return [h, c]
        return list(lstm_reference(pre, states[1], p.to(pre), self.xi(states[1]), self.numbers))

    def onnx_form(self) -> nn.Module:
        return PlainLSTMGates(self)


class NoisyGRUGates(NoisyGates):
    """The gates of a GRU: r and z are noisy hard sigmoids, the candidate is a noisy hard tanh."""

    activations = 3

    def forward(self, from_input: Tensor, from_state: Tensor, states: States, t: Tensor | int = 1) -> States:
        p = self.each_p()
        if self.is_native(from_input):
            return [gru_step(from_input, from_state, states[0], p, self.numbers, self.seed())]
        xi = self.xi(states[0])
        return [gru_reference(from_input, from_state, states[0], p.to(from_input), xi, self.numbers)]

    def onnx_form(self) -> nn.Module:
        return PlainGRUGates(self)


class NoisyLSTM(GatedRNN, nn.LSTM):
    """`nn.LSTM` with noisy gates: parameters, arguments and results are the same, and p besides.

    A time step is a product with the state and one kernel, forward and back. Without noise (alpha = 1, c = 0) it is an
    LSTM with the hard tanh and sigmoid of Moczulski 2019, eqs. 4.3 and 4.4.
    """

    def _steps(self, x: Tensor, sizes: list[int], states: States, suffix: str, reverse: bool) -> tuple[Tensor, States]:
        me: Any = self
        noise = me.gates[suffix]
        pre = self._product(x, "ih", suffix)
        if not noise.is_native(pre):  # it is in half precision under autocast, or on another device
            return super()._steps(x, sizes, states, suffix, reverse)
        if me.bias:
            pre = pre + getattr(me, f"bias_hh{suffix}")
        out, *last = lstm_steps(
            pre, getattr(me, f"weight_hh{suffix}"), states[0], states[1], noise.each_p(), noise.numbers, noise.seed(),
            sizes, reverse,
        )  # fmt: skip
        return out, last


class NoisyGRU(GatedRNN, nn.GRU):
    """`nn.GRU` with noisy gates: parameters, arguments and results are the same, and p besides. See `NoisyLSTM`."""

    def _steps(self, x: Tensor, sizes: list[int], states: States, suffix: str, reverse: bool) -> tuple[Tensor, States]:
        me: Any = self
        noise = me.gates[suffix]
        px = self._product(x, "ih", suffix)
        if not noise.is_native(px):
            return super()._steps(x, sizes, states, suffix, reverse)
        out, *last = gru_steps(
            px, getattr(me, f"weight_hh{suffix}"), getattr(me, f"bias_hh{suffix}", None),
            states[0], noise.each_p(), noise.numbers, noise.seed(), sizes, reverse,
        )  # fmt: skip
        return out, last


class _NoisyCell(Capabilities):
    """Base of an `nn.LSTMCell` or `nn.GRUCell` with noisy gates."""

    gates: Any

    def label(self) -> str:
        return f"{type(self).__name__}({self.gates.kind})"

    @classmethod
    def like(cls, cell: Any, gates: NoisyGates) -> Any:
        noisy: Any = share_parameters(cls, cell)  # type: ignore[type-var]
        noisy.gates = gates
        return noisy

    def _step(self, x: Tensor, states: States | None, count: int) -> States:
        me: Any = self
        given = [] if states is None else states
        if x.dim() not in (1, 2) or any(state.dim() != x.dim() for state in given):
            dims = [part.dim() for part in (x, *given)]
            raise ValueError(f"{type(self).__name__}: input and states must all be 1-D, or all 2-D. Got {dims}.")
        alone = x.dim() == 1
        if alone:
            x, states = x[None], None if states is None else [state[None] for state in states]
        if states is None:
            states = [x.new_zeros(len(x), me.hidden_size)] * count
        products = [
            F.linear(part, getattr(me, f"weight_{kind}"), getattr(me, f"bias_{kind}", None))
            for kind, part in (("ih", x), ("hh", states[0]))
        ]
        new: States = me.gates(*products, states)
        return [state[0] for state in new] if alone else new


class NoisyLSTMCell(_NoisyCell, nn.LSTMCell):
    """`nn.LSTMCell` with noisy gates: arguments and results are the same."""

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        h, c = self._step(input, None if hx is None else list(hx), 2)
        return h, c


class NoisyGRUCell(_NoisyCell, nn.GRUCell):
    """`nn.GRUCell` with noisy gates: arguments and results are the same."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._step(input, None if hx is None else [hx], 1)[0]
