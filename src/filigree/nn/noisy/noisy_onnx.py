"""Noisy activations and gates stand in an ONNX file in plain torch: noise is its mean."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from filigree.ops.noise import expected_input_noise, noisy_reference
from filigree.ops.noisy_rnn import gru_reference, lstm_reference


class _WithoutNoise(nn.Module):
    form = "expectation of the noise"

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module


class PlainNoise(_WithoutNoise):
    """In a noisy activation in eval mode noise is its mean, or with `exact` the result is its expectation."""

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self.module
        at_input = m.kind not in ("NAN", "NAH")
        if m.exact and at_input:
            return expected_input_noise(x, m._spread(x), m.numbers, m._tanh)
        return noisy_reference(x, m._spread(x), 0.0 if at_input else m.mean, m.numbers, m._tanh)


class PlainLSTMGates(_WithoutNoise):
    """It computes the noisy gates of an LSTM in eval mode."""

    def forward(self, from_input: Tensor, from_state: Tensor, states: list[Tensor], t: int = 1) -> list[Tensor]:
        gates: Any = self.module
        xi = gates.xi(states[0])
        return list(lstm_reference(from_input + from_state, states[1], gates.each_p(), xi, gates.numbers))


class PlainGRUGates(_WithoutNoise):
    """It computes the noisy gates of a GRU in eval mode."""

    def forward(self, from_input: Tensor, from_state: Tensor, states: list[Tensor], t: int = 1) -> list[Tensor]:
        gates: Any = self.module
        xi = gates.xi(states[0])
        return [gru_reference(from_input, from_state, states[0], gates.each_p(), xi, gates.numbers)]
