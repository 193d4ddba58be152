"""LSTM and GRU whose products with weights have a sparsified backward pass."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from filigree.nn.asymmetric.asymmetric_linear import Asymmetrical, asymmetric_linear
from filigree.nn.drop_in import recast
from filigree.nn.rnn import LoopedRNN, gru_cell, is_lstm, like_rnn, lstm_cell


class _AsymmetricRNN(Asymmetrical, LoopedRNN):
    """Base of both. Parameters, arguments and results are those of the torch class, the dense equivalent.

    The torch class computes eval mode and exact gradients, unless gates of another kind have been put in.
    """

    @classmethod
    def like(cls, rnn: Any) -> Self:
        """This network with the settings and the parameter objects of an `nn.LSTM` or `nn.GRU`."""
        return like_rnn(cls, rnn)

    def forward(self, input: Any, hx: Any = None) -> Any:
        if not self.has_gates and self.is_exact(input):
            return super(LoopedRNN, self).forward(input, hx)
        return super().forward(input, hx)

    def _product(self, x: Tensor, part: str, suffix: str) -> Tensor:
        if self.is_exact(x):
            return super()._product(x, part, suffix)
        return asymmetric_linear(x, *self._weight_and_bias(part, suffix), self)

    def onnx_form(self) -> nn.Module:
        if self.has_gates:
            return super().onnx_form()
        return recast(nn.LSTM if is_lstm(self) else nn.GRU, self)


class AsymmetricLSTM(_AsymmetricRNN, nn.LSTM, replaces=(nn.LSTM,)):
    """`nn.LSTM` with sparsified gradients of its products with weights: delta is that of the four gates together."""

    _cell = staticmethod(lstm_cell)


class AsymmetricGRU(_AsymmetricRNN, nn.GRU, replaces=(nn.GRU,)):
    """`nn.GRU` with sparsified gradients of its products with weights: delta is that of the three gates together."""

    _cell = staticmethod(gru_cell)
