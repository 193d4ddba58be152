"""A Neural Turing Machine: an LSTM cell that reads and writes a memory of slots."""

from __future__ import annotations

from collections import OrderedDict
from functools import reduce

import torch
from torch import Tensor, nn

from filigree.models.networks import builder, made_by

EPSILON = 1e-4  # added to the product of norms, as blank slots have none
FLOOR = 1e-8  # the least weight that is sharpened


def address(
    memory: Tensor,  # M: (batch, slots, width)
    before: Tensor,  # w of the step before: (batch, heads, slots)
    key: Tensor,  # k: (batch, heads, width)
    strength: Tensor,  # beta >= 0: (batch, heads, 1)
    gate: Tensor,  # g in [0, 1]: (batch, heads, 1)
    shift: Tensor,  # s over -1, 0, +1 slots, sums to 1: (batch, heads, 3)
    sharpness: Tensor,  # gamma >= 1: (batch, heads, 1)
) -> Tensor:
    """Where each head looks, `(batch, heads, slots)`, rows sum to 1 (Graves et al. 2014, equations 5 to 9).

    w_c = softmax_i(beta cos(k, M_i)); w_g = g w_c + (1 - g) w_before; w_s(i) = sum_j w_g(j) s(i - j), circular;
    w(i) = w_s(i)^gamma / sum_j w_s(j)^gamma.
    """
    norms = key.norm(dim=-1, keepdim=True) * memory.norm(dim=-1).unsqueeze(1)
    content = (strength * (key @ memory.mT) / (norms + EPSILON)).softmax(-1)
    w = gate * content + (1 - gate) * before
    down, stay, up = shift.split(1, -1)
    w = down * w.roll(-1, -1) + stay * w + up * w.roll(1, -1)
    return (sharpness * w.clamp(min=FLOOR).log()).softmax(-1)  # no power under- or overflows


def _layer(inputs: int, outputs: int, activation: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(fc=nn.Linear(inputs, outputs), activation=activation))


class NTM(nn.Module):
    """The module that `ntm` builds."""

    def __init__(self, inputs: int, outputs: int, controller: int, slots: int, width: int, heads: int) -> None:
        super().__init__()
        self.slots, self.width, self.heads = slots, width, heads
        self.controller = nn.LSTMCell(inputs + heads * width, controller)
        self.key = _layer(controller, 2 * heads * width, nn.Tanh())
        self.strength = _layer(controller, 2 * heads, nn.Softplus())
        self.gate = _layer(controller, 2 * heads, nn.Sigmoid())
        self.shift = nn.Linear(controller, 2 * heads * 3)
        self.sharpness = _layer(controller, 2 * heads, nn.Softplus())
        self.erase = _layer(controller, heads * width, nn.Sigmoid())
        self.add = _layer(controller, heads * width, nn.Tanh())
        self.output = nn.Linear(controller + heads * width, outputs)

    def _address(self, h: Tensor, memory: Tensor, before: Tensor) -> Tensor:
        layers = (self.key, self.strength, self.gate, self.shift, self.sharpness)
        key, strength, gate, shift, sharpness = (layer(h).unflatten(-1, (2 * self.heads, -1)) for layer in layers)
        return address(memory, before, key, strength, gate, shift.softmax(-1), 1 + sharpness)

    def _write(self, h: Tensor, memory: Tensor, w: Tensor) -> Tensor:
        erase, add = (layer(h).unflatten(-1, (self.heads, -1)) for layer in (self.erase, self.add))
        kept = 1 - w.unsqueeze(-1) @ erase.unsqueeze(2)  # (batch, heads, slots, width)
        return reduce(torch.mul, kept.unbind(1), memory) + w.mT @ add

    def forward(self, x: Tensor) -> Tensor:
        memory = x.new_zeros(len(x), self.slots, self.width)
        read = x.new_zeros(len(x), self.heads * self.width)
        w = x.new_zeros(len(x), 2 * self.heads, self.slots)
        w[..., 0] = 1
        state, out = None, []
        for part in x.unbind(1):
            state = self.controller(torch.cat([part, read], -1), state)
            w = self._address(state[0], memory, w)
            reading, writing = w.split(self.heads, 1)
            memory = self._write(state[0], memory, writing)
            read = (reading @ memory).flatten(1)
            out.append(torch.cat([state[0], read], -1))
        return self.output(torch.stack(out, 1))


@builder
def ntm(
    inputs: int, outputs: int, controller: int = 100, slots: int = 128, width: int = 20, heads: int = 1
) -> nn.Module:
    """A Neural Turing Machine with an LSTM controller (Graves et al. 2014; Moczulski 2019, 4.3.6.6, Fig. 4.11).

    At each step the controller sees the input and what was read before; its state h places all heads (`address`) on
    the memory M of the step before; write heads do `M <- M (1 - w e) + w a` (equations 3 and 4; all erase, then all
    add), e by a sigmoid, a and the keys by tanh; read heads read `sum_i w(i) M_i` (equation 2) of the new memory; the
    output is linear in h and what was read. Memory starts at zero, with all heads on its first slot.

    Args:
        inputs, outputs: widths. controller: units of the LSTM cell. slots, width: the memory's rows and columns.
        heads: read heads, and as many write heads.

    Shape: `(batch, time, inputs)` to logits `(batch, time, outputs)`; each call starts anew.
    """
    if min(inputs, outputs, controller, slots, width, heads) < 1:
        raise ValueError(
            "ntm: inputs, outputs, controller, slots, width and heads must be at least 1. "
            f"Got {inputs}, {outputs}, {controller}, {slots}, {width} and {heads}."
        )
    model = NTM(inputs, outputs, controller, slots, width, heads)
    return made_by(
        model, "ntm", inputs=inputs, outputs=outputs, controller=controller, slots=slots, width=width, heads=heads
    )
