"""LSTM and GRU whose products with weights are structured or sparse layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from filigree.nn.onnx_operators import product_operator, recurrent_operator
from filigree.nn.rnn import LoopedRNN, gru_cell, is_lstm, lstm_cell, refuse_projections, suffixes
from filigree.nn.torch_attributes import ReadsAttributes


class StructuredRNN(ReadsAttributes, LoopedRNN):
    """An `nn.LSTM` or `nn.GRU` with structured or sparse layers as weight matrices: arguments and results are the same.

    Args:
        rnn: the network whose sizes are taken.
        build: `(in_features, out_features, number) -> layer` for each weight matrix, the gates stacked.
    """

    proj_size = 0
    instead: ClassVar[Mapping[str, str]] = dict.fromkeys(("weight_ih", "weight_hh"), "read its products")

    def __init__(self, rnn: Any, build: Callable[[int, int, int], nn.Module]) -> None:
        super().__init__()
        refuse_projections(rnn, "StructuredRNN")
        for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"):
            setattr(self, name, getattr(rnn, name))
        self.mode = "LSTM" if is_lstm(rnn) else "GRU"
        self._cell = lstm_cell if is_lstm(rnn) else gru_cell
        out = (4 if is_lstm(rnn) else 3) * rnn.hidden_size
        self.products = nn.ModuleDict()
        for suffix in suffixes(rnn):
            inputs = getattr(rnn, f"weight_ih{suffix}").shape[1]
            for part, width in (("ih", inputs), ("hh", rnn.hidden_size)):
                self.products[part + suffix] = build(width, out, len(self.products))
                if rnn.bias:
                    self.register_parameter(f"bias_{part}{suffix}", nn.Parameter(torch.zeros(out)))

    @classmethod
    def unfolded(cls, rnn: Any) -> StructuredRNN:
        """This network with the parameters of `rnn`, its products being `nn.Linear` layers."""
        looped = cls(rnn, lambda i, o, n: nn.Linear(i, o, bias=False, device="meta"))
        for name, parameter in rnn.named_parameters():
            kind, key = name.split("_", 1)
            if kind == "bias":
                setattr(looped, name, parameter)
            else:
                product: Any = looped.products[key]
                product.weight = parameter
        return looped.train(rnn.training)

    def _product(self, x: Tensor, part: str, suffix: str) -> Tensor:
        y = self.products[part + suffix](x)
        return y + getattr(self, f"bias_{part}{suffix}") if self.bias else y

    def onnx_operator(self) -> nn.Module | None:
        products = {name: product_operator(product) for name, product in self.products.items()}
        biases = {name: getattr(self, f"bias_{name}", None) for name in products}
        return None if self.has_gates else recurrent_operator(self, products, biases, is_lstm(self))
