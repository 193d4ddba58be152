"""LSTM and GRU in 8-bit integers, computed in torch as the C program does, bit for bit.

Outputs, which the next time step reads, have 8 bits and a zero of 0; cells (of a GRU: outputs again, since small
steps towards them would be lost in 8 bits) have 16. Gates are summed in 32 bits, in units of 2^-14. The hyperbolic
tangent takes units of 2^-15 and gives as many: lines between entries of a table, `sigmoid(v) = (1 + tanh(v / 2)) / 2`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from filigree.export.c.int8_products import Product, product
from filigree.export.c.int8_steps import HIGHEST, LOWEST, Scale, multiplier, rescaled, rounded
from filigree.export.c.recurrent import Recurrent
from filigree.export.c.stages import check_finite
from filigree.ops.c_steps import Affine, csr, refuse

_GATES = Scale(2.0**-14, 0)
_MOST = 2**28  # of a sum; two of them, doubled, fit into 32 bits
TANH = np.round(2**15 * np.tanh(np.arange(257) / 32)).clip(max=2**15 - 1).astype(np.int16)


def _tanh(v: Tensor) -> Tensor:
    table = torch.from_numpy(TANH.astype(np.int64))
    size = v.abs().clamp(max=2**18)  # 8
    at, part = size.clamp(max=2**18 - 1) >> 10, size & 1023
    y = torch.where(size < 2**18, table[at] + (((table[at + 1] - table[at]) * part + 512) >> 10), table[-1])
    return torch.where(v < 0, -y, y)


def _sigmoid(v: Tensor) -> Tensor:
    """Return 2^16 times the sigmoid of v 2^-14."""
    return 2**15 + _tanh(v)


@dataclass(frozen=True)
class Cells:
    """A layer of recurrent units on `(batch, time, inputs)`.

    `from_input` and `from_state` sum the gates, of an LSTM input, forget, cell, output; of a GRU new, reset, update
    from inputs, and reset, update, new from the state. `bits` of a cell stand behind the point; `m 2^-s` brings
    outputs to their scale, `after`.
    """

    name: str
    kind: str
    from_input: Product
    from_state: Product
    bits: int
    m: int
    s: int
    after: Scale

    @property
    def units(self) -> int:
        return int(self.from_state.matrix.shape[1])

    def simulated(self, q: Tensor) -> Tensor:
        state = cells = q.new_zeros(len(q), self.units)
        of_inputs, outputs = self.from_input.sums(q).clamp(-_MOST, _MOST), []
        for moment in range(q.shape[1]):
            of_state = self.from_state.sums(state).clamp(-_MOST, _MOST)
            advance = self._lstm if self.kind == "lstm" else self._gru
            state, cells = advance(of_inputs[:, moment], of_state, cells)
            outputs.append(state)
        return torch.stack(outputs, 1)

    def _lstm(self, of_inputs: Tensor, of_state: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        taken, kept, value, out = (of_inputs + of_state).chunk(4, 1)
        new = _sigmoid(taken) * _tanh(2 * value)  # of 31 bits
        cells = rounded(_sigmoid(kept) * (cells << (15 - self.bits)) + new, 31 - self.bits).clamp(-(2**15), 2**15 - 1)
        return self._stored(_sigmoid(out) * _tanh(cells << (15 - self.bits))), cells

    def _gru(self, of_inputs: Tensor, of_state: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        value, reset, kept = of_inputs.chunk(3, 1)
        reset_of_state, kept_of_state, value_of_state = of_state.chunk(3, 1)
        value = value + rounded(_sigmoid(reset + reset_of_state) * value_of_state, 16)
        kept = _sigmoid(kept + kept_of_state)
        cells = rounded((2**16 - kept) * _tanh(2 * value) + kept * cells, 16)
        return self._stored(cells), cells

    def _stored(self, outputs: Tensor) -> Tensor:
        m, s = torch.tensor(self.m), torch.tensor(self.s)
        return rescaled(outputs, m, s).clamp(LOWEST, HIGHEST)


def cells(step: Recurrent, before: Scale, x: Tensor) -> tuple[Tensor, Cells]:
    """Return what the layer makes of the calibration data `(batch, time, inputs)` in floats, and its integers.

    Raises:
        ValueError: weights that are not finite; other inputs; sums that do not fit.
    """
    arrays = (step.weight, step.state_weight, step.bias, step.state_bias)
    check_finite(step.name, *arrays)
    if x.shape[-1] != step.weight.shape[1]:
        raise refuse(step.name, f"reads (time, {step.weight.shape[1]}) a sample. Got {tuple(x.shape[1:])}")
    y, most = _floats(step, x)
    after = Scale(float(y.abs().max()) / HIGHEST or 1.0, 0)
    weight, bias = step.weight, step.bias
    if step.kind == "gru":  # the last of three, new, first
        weight, bias = (np.roll(array, step.units, axis=0) for array in (weight, bias))
    from_input, from_state = (
        product(Affine(step.name, csr(matrix), None, each), scale, _GATES)
        for matrix, each, scale in ((weight, bias, before), (step.state_weight, step.state_bias, after))
    )
    bits = min(15, max(0, 14 - math.ceil(math.log2(max(most, 2.0**-15))))) if step.kind == "lstm" else 15
    m, s = multiplier(2.0 ** (-31 if step.kind == "lstm" else -15) / after.scale)
    return y, Cells(step.name, step.kind, from_input, from_state, bits, m, s, after)


def _floats(step: Recurrent, x: Tensor) -> tuple[Tensor, float]:
    """Return the outputs `(batch, time, units)` in float64, and the largest magnitude of a cell."""
    arrays = (step.weight, step.state_weight, step.bias, step.state_bias)
    weight, state_weight, bias, state_bias = (torch.from_numpy(array).double() for array in arrays)
    state = cell = x.new_zeros(len(x), step.units)
    outputs, most = [], 0.0
    for moment in range(x.shape[1]):
        of_input, of_state = F.linear(x[:, moment], weight, bias), F.linear(state, state_weight, state_bias)
        if step.kind == "lstm":
            taken, kept, value, out = (of_input + of_state).chunk(4, 1)
            cell = kept.sigmoid() * cell + taken.sigmoid() * value.tanh()
            state = out.sigmoid() * cell.tanh()
        else:
            reset, kept, value = of_input.chunk(3, 1)
            of_reset, of_kept, of_value = of_state.chunk(3, 1)
            value = (value + (reset + of_reset).sigmoid() * of_value).tanh()
            kept = (kept + of_kept).sigmoid()
            state = (1 - kept) * value + kept * state
        most = max(most, float(cell.abs().max()))
        outputs.append(state)
    return torch.stack(outputs, 1), most
