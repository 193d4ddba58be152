"""LSTM and GRU whose products with weights are structured layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from filigree.nn.rnn import LoopedRNN, gru_cell, lstm_cell


class StructuredRNN(LoopedRNN):
    """An `nn.LSTM` or `nn.GRU` whose weight matrices are structured layers: arguments and results are the same.

    Args:
        rnn: whose sizes it takes. build: `(in_features, out_features, number) -> layer` for each weight matrix, the
            gates stacked.
    """

    def __init__(self, rnn: Any, build: Callable[[int, int, int], nn.Module]) -> None:
        super().__init__()
        if rnn.proj_size:
            raise ValueError(f"StructuredRNN: projections (proj_size) cannot be converted. Got {rnn.proj_size}.")
        for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"):
            setattr(self, name, getattr(rnn, name))
        self.is_lstm = isinstance(rnn, nn.LSTM)
        self._cell = lstm_cell if self.is_lstm else gru_cell
        out = (4 if self.is_lstm else 3) * rnn.hidden_size
        self.products = nn.ModuleDict()
        directions = 2 if rnn.bidirectional else 1
        for layer in range(rnn.num_layers):
            for side in range(directions):
                suffix = f"_l{layer}" + ("_reverse" if side else "")
                inputs = rnn.input_size if layer == 0 else directions * rnn.hidden_size
                for part, width in (("ih", inputs), ("hh", rnn.hidden_size)):
                    self.products[part + suffix] = build(width, out, len(self.products))
                    if rnn.bias:
                        self.register_parameter(f"bias_{part}{suffix}", nn.Parameter(torch.zeros(out)))

    @classmethod
    def unfolded(cls, rnn: Any) -> StructuredRNN:
        """The same network with the same parameters, its products `nn.Linear` layers."""
        made = cls(rnn, lambda i, o, n: nn.Linear(i, o, bias=False, device="meta"))
        for name, parameter in rnn.named_parameters():
            kind, key = name.split("_", 1)
            if kind == "bias":
                setattr(made, name, parameter)
            else:
                product: Any = made.products[key]
                product.weight = parameter
        return made.train(rnn.training)

    def _product(self, x: Tensor, part: str, suffix: str) -> Tensor:
        y = self.products[part + suffix](x)
        return y + getattr(self, f"bias_{part}{suffix}") if self.bias else y

    def forward(self, x: Any, hx: Any = None) -> Any:
        if self.is_lstm:
            y, (h, c) = self._walk(x, None if hx is None else list(hx), 2)
            return y, (h, c)
        y, (h,) = self._walk(x, None if hx is None else [hx], 1)
        return y, h
