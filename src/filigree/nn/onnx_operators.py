"""Layers as nodes of filigree's own operators for ONNX Runtime, whose weights take the bytes of what is not zero.

`filigree/export/onnx/operators.cpp.in` is their source; it says how a weight's code is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.nn.capabilities import Capabilities
from filigree.ops.conv import Geometry

DOMAIN = "filigree"
_WIDEST = 16  # bits of an integer
_STORED, _READ = ("encoded", "scale", "input_scale"), ("rows", "width", "nonzeros", "bits", "gaps")  # of a weight


class Code(NamedTuple):
    """A matrix as bytes: where its nonzeros are, then what they are; `attributes` say how they are read."""

    bytes: Tensor
    attributes: dict[str, int]


def encoded(matrix: Tensor) -> Code | None:
    """Encode a matrix `(rows, width)`, float32 or integers; None: of float64, or of integers of more than 16 bits.

    Positions are a bit a weight, or a byte for each nonzero with the zeros before it; the smaller is taken. Values are
    floats, integers in as few bits as they fit into, or signs where all are 1 and -1.
    """
    rows, width = matrix.shape
    if matrix.dtype is torch.float64:
        return None
    flat = matrix.detach().cpu().flatten().numpy()
    at = flat.nonzero()[0]
    values, bits = flat[at], 32
    if not matrix.is_floating_point():
        most = int(np.abs(values).max(initial=1))
        bits = 1 if most == 1 else most.bit_length() + 1
        if bits > _WIDEST:
            return None
    zeros = np.diff(at, prepend=-1) - 1
    ends = np.cumsum(zeros // 255 + 1)
    has_gaps = bool(int(ends[-1]) < -(-flat.size // 8)) if len(at) else True
    if has_gaps:
        positions = np.full(int(ends[-1]) if len(at) else 0, 255, np.uint8)
        positions[ends - 1] = zeros % 255
    else:
        positions = np.packbits(flat != 0, bitorder="little")
    if bits == 32:
        stored = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
    else:
        raised = (values < 0) if bits == 1 else values.astype(np.int64) + (1 << (bits - 1))
        digits = (raised[:, None].astype(np.int64) >> np.arange(bits)).astype(np.uint8) & 1
        stored = np.packbits(digits, bitorder="little")
    attributes = {"rows": rows, "width": width, "nonzeros": len(at), "bits": bits, "gaps": int(has_gaps)}
    return Code(torch.from_numpy(np.concatenate([positions, stored])), attributes)


class _Operator(nn.Module):
    """A node of one of the operators: its input, the code, scales of rows and of inputs, the bias."""

    name: str
    form = "operator"

    def __init__(self, code: Code, bias: Tensor | None, scale: Tensor | None, input_scale: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("encoded", code.bytes)
        for name, numbers in (("scale", scale), ("input_scale", input_scale), ("bias", bias)):
            self.register_buffer(name, torch.empty(0) if numbers is None else numbers.detach().cpu().flatten())
        self.attributes: dict[str, Any] = dict(code.attributes)

    def node(self, x: Tensor, sides: list[Any]) -> Tensor:
        inputs = [x, *(self.get_buffer(name) for name in ("encoded", "scale", "input_scale", "bias"))]
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.name}", inputs, self.attributes, dtype=torch.float32, shape=sides, version=1
        )


class OperatorLinear(_Operator):
    """`SparseLinear`: `y = scale (W input_scale) x + bias`, and ReLU."""

    name = "SparseLinear"

    def __init__(self, layer: Any, code: Code, scale: Tensor | None = None, input_scale: Tensor | None = None) -> None:
        super().__init__(code, layer.bias, scale, input_scale)
        self.attributes["relu"] = int(getattr(layer, "relu", False))

    def forward(self, x: Tensor) -> Tensor:
        return self.node(x, [*x.shape[:-1], self.attributes["rows"]])


class OperatorConv2d(_Operator):
    """`SparseConv`: a convolution of `(N, channels, height, width)`; other padding than zeros is put on before."""

    name = "SparseConv"

    def __init__(
        self, layer: Any, geometry: Geometry, code: Code, scale: Tensor | None = None, input_scale: Tensor | None = None
    ) -> None:
        in_weight = input_scale is not None and geometry.groups == 1  # groups read other channels by the same columns
        super().__init__(code, layer.bias, scale, input_scale if in_weight else None)
        self.before: Tensor | None
        self.register_buffer("before", None if in_weight else input_scale)
        self.attributes |= {
            "channels": layer.in_channels, "kernel": list(geometry.kernel), "stride": list(geometry.stride),
            "dilation": list(geometry.dilation), "padding": list(geometry.padding), "groups": geometry.groups,
            "relu": 0,
        }  # fmt: skip
        self.geometry, self.mode = geometry, layer.padding_mode
        self.around = tuple(layer._around) if hasattr(layer, "_around") else layer._reversed_padding_repeated_twice

    def forward(self, x: Tensor) -> Tensor:
        g = self.geometry
        if self.before is not None:
            x = x * self.before.view(-1, 1, 1)
        if self.mode != "zeros":
            x = F.pad(x, self.around, mode=self.mode)
        around = g.padding[0] + g.padding[1], g.padding[2] + g.padding[3]
        sides = [
            (size + p - d * (k - 1) - 1) // s + 1
            for size, p, k, s, d in zip(x.shape[2:], around, g.kernel, g.stride, g.dilation, strict=True)
        ]
        return self.node(x, [x.shape[0], self.attributes["rows"], *sides])


class OperatorConv1d(nn.Module):
    """`SparseConv` of `(N, channels, length)`: a height of 1 is put in before, and taken out after."""

    form = OperatorConv2d.form

    def __init__(self, flat: OperatorConv2d) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(x.unsqueeze(2)).squeeze(2)


class OperatorRNN(nn.Module):
    """An LSTM or GRU by `SparseRecurrent`, a node for each layer and direction, for sequences of any length.

    Args:
        rnn: whose sizes are taken. products, biases: of each layer and direction by name, such as "ih_l0_reverse".
    """

    form = OperatorLinear.form

    def __init__(
        self, rnn: Any, products: Mapping[str, OperatorLinear], biases: Mapping[str, Tensor | None], lstm: bool
    ) -> None:
        super().__init__()
        self.batch_first, self.sides, self.states = rnn.batch_first, 1 + rnn.bidirectional, 1 + lstm
        names = [name.removeprefix("ih") for name in products if name.startswith("ih")]
        self.directions = nn.ModuleList(
            _Direction(
                products["ih" + name], products["hh" + name], biases["ih" + name], biases["hh" + name],
                {"gates": 3 + lstm, "reverse": int(name.endswith("reverse")), "batch_first": int(rnn.batch_first)},
            )
            for name in names
        )  # fmt: skip
        self.hidden = rnn.hidden_size

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        alone = input.dim() == 2
        x = input.unsqueeze(0 if self.batch_first else 1) if alone else input
        batch = x.shape[0 if self.batch_first else 1]
        if hx is None:
            given = [x.new_zeros(len(self.directions), batch, self.hidden)] * self.states
        else:
            given = [part.unsqueeze(1) if alone else part for part in (hx if self.states == 2 else [hx])]
        last: list[Tensor] = []
        for number in range(0, len(self.directions), self.sides):
            outputs = []
            for side in range(self.sides):
                first = torch.stack([part[number + side] for part in given])
                y, states = self.directions[number + side](x, first)
                outputs.append(y)
                last.append(states)
            x = torch.cat(outputs, -1) if self.sides > 1 else outputs[0]
        finals = list(torch.stack(last, 1).unbind())
        if alone:
            x, finals = x.squeeze(0 if self.batch_first else 1), [part.squeeze(1) for part in finals]
        return x, (tuple(finals) if self.states == 2 else finals[0])


class _Direction(nn.Module):
    """A node of `SparseRecurrent`: sequences and first states `(states, batch, hidden)` to outputs and last states."""

    def __init__(
        self, ih: OperatorLinear, hh: OperatorLinear, bias_ih: Tensor | None, bias_hh: Tensor | None,
        attributes: Mapping[str, int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.attributes: dict[str, Any] = dict(attributes)
        self.weights = [f"{name}_{part}" for part in ("ih", "hh") for name in _STORED]
        for part, product, bias in (("ih", ih, bias_ih), ("hh", hh, bias_hh)):
            for name in _STORED:
                self.register_buffer(f"{name}_{part}", product.get_buffer(name))
            self.register_buffer(f"bias_{part}", torch.empty(0) if bias is None else bias.detach().cpu())
            self.attributes |= {f"{name}_{part}": product.attributes[name] for name in _READ}

    def forward(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        inputs = [x, first, *(self.get_buffer(name) for name in (*self.weights, "bias_ih", "bias_hh"))]
        y, states = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::SparseRecurrent", inputs, self.attributes, dtypes=(torch.float32, torch.float32),
            shapes=([*x.shape[:2], first.shape[2]], list(first.shape)), version=1,
        )  # fmt: skip
        return y, states


def recurrent_operator(
    rnn: Any, products: Mapping[str, OperatorLinear | None], biases: Mapping[str, Tensor | None], lstm: bool
) -> nn.Module | None:
    """An LSTM or GRU by the operators of its products; None where one has none."""
    able = {name: product for name, product in products.items() if product is not None}
    return OperatorRNN(rnn, able, biases, lstm) if len(able) == len(products) else None


def product_operator(layer: nn.Module) -> OperatorLinear | None:
    """A product with a matrix, and nothing else, as an operator; None: it is none, or its matrix has no code."""
    operator = layer.onnx_operator() if isinstance(layer, Capabilities) else None
    if operator is None and isinstance(layer, nn.Linear) and (code := encoded(layer.weight)) is not None:
        operator = OperatorLinear(layer, code)
    if not isinstance(operator, OperatorLinear) or operator.attributes["relu"] or operator.get_buffer("bias").numel():
        return None
    return operator
