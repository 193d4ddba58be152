"""LSTM and GRU whose products with weights have a sparsified backward pass."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from filigree.nn.asymmetric.asymmetric_linear import Asymmetrical, asymmetric_linear
from filigree.nn.capabilities import plain_torch
from filigree.nn.rnn import GatedRNN, LoopedRNN, gru_cell, is_lstm, like_rnn, lstm_cell
from filigree.nn.unrolled_rnn import UnrolledRNN


class _AsymmetricRNN(Asymmetrical, LoopedRNN):
    @classmethod
    def like(cls, rnn: Any) -> Self:
        """The same network with the same parameter objects."""
        return like_rnn(cls, rnn)

    def _product(self, x: Tensor, part: str, suffix: str) -> Tensor:
        me: Any = self
        bias = getattr(me, f"bias_{part}{suffix}") if me.bias else None
        return asymmetric_linear(x, getattr(me, f"weight_{part}{suffix}"), bias, self)

    def _is_exact(self) -> bool:
        if not (self.training and torch.is_grad_enabled()) or self.config.rule.is_exact:
            return True
        self.check_rule()
        return False

    def onnx_form(self) -> nn.Module:
        if self.has_gates:
            return UnrolledRNN(self, GatedRNN._product.__get__(self), is_lstm(self))
        return plain_torch(self, nn.LSTM if is_lstm(self) else nn.GRU)


class AsymmetricLSTM(_AsymmetricRNN, nn.LSTM, replaces=(nn.LSTM,)):
    """`nn.LSTM` with sparsified gradients of its products with weights: delta is that of the four gates together.

    Parameters, arguments and results are those of `nn.LSTM`, which is its dense equivalent and computes its eval mode.
    """

    _cell = staticmethod(lstm_cell)

    def forward(self, input: Any, hx: Any = None) -> Any:
        if not self.has_gates and self._is_exact():
            return nn.LSTM.forward(self, input, hx)
        return self.looped(input, hx)


class AsymmetricGRU(_AsymmetricRNN, nn.GRU, replaces=(nn.GRU,)):
    """`nn.GRU` with sparsified gradients of its products with weights: delta is that of the three gates together.

    Parameters, arguments and results are those of `nn.GRU`, which is its dense equivalent and computes its eval mode.
    """

    _cell = staticmethod(gru_cell)

    def forward(self, input: Any, hx: Any = None) -> Any:
        if not self.has_gates and self._is_exact():
            return nn.GRU.forward(self, input, hx)
        return self.looped(input, hx)
