"""LSTM and GRU with noisy gates: a time step by one kernel each way, and whole sequences by a loop over such steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from filigree.modes import outside_graphs
from filigree.ops._load import kernels
from filigree.ops.addresses import address
from filigree.ops.noise import Noise, Seed, noisy_reference
from filigree.ops.once_differentiable import once_differentiable
from filigree.ops.sparse import contiguous, resolved


def lstm_reference(pre: Tensor, c: Tensor, p: Tensor, xi: list[Tensor | float], noise: Noise) -> tuple[Tensor, Tensor]:
    """h and c after a step, in plain torch.

    Args:
        pre: `(samples, 4 hidden)`, the gates i, f, g, o before their activations. p: `(5, hidden)`, the last of the
            state's own. xi: noise of the four gates and of the state.
    """
    gates = pre.chunk(4, -1)
    i, f, g, o = (noisy_reference(gates[n], p[n], xi[n], noise, n == 2) for n in range(4))
    c = f * c + i * g
    return o * noisy_reference(c, p[4], xi[4], noise, True), c


def gru_reference(px: Tensor, ph: Tensor, h: Tensor, p: Tensor, xi: list[Tensor | float], noise: Noise) -> Tensor:
    """h after a step, in plain torch; px, ph `(samples, 3 hidden)`: products with input and state, p `(3, hidden)`."""
    (xr, xz, xn), (hr, hz, hn) = px.chunk(3, -1), ph.chunk(3, -1)
    r = noisy_reference(xr + hr, p[0], xi[0], noise, False)
    z = noisy_reference(xz + hz, p[1], xi[1], noise, False)
    n = noisy_reference(xn + r * hn, p[2], xi[2], noise, True)
    return (1 - z) * n + z * h


def lstm_steps(
    pre: Tensor, weight: Tensor | None, h: Tensor, c: Tensor, p: Tensor, noise: Noise, seed: Seed, sizes: list[int],
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """A packed sequence through an LSTM: outputs `(total, hidden)`, last h and c.

    Args:
        pre: `(total, 4 hidden)`, the products with the input and both biases. weight: `(4 hidden, hidden)`, of the
            state; None: pre holds all, of a single step. h, c: `(samples, hidden)`. sizes: samples at each time step,
            never more than at the one before.
    """
    _check(pre, pre.shape[1] // 4, sizes[0] if sizes else 0, h=h, c=c)
    return _lstm(pre, weight, h, c, p, noise, seed, sizes, reverse)


def gru_steps(
    px: Tensor, weight: Tensor, bias: Tensor | None, h: Tensor, p: Tensor, noise: Noise, seed: Seed, sizes: list[int],
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A packed sequence through a GRU: outputs and last h; px with the input's bias, `bias` the state's."""
    _check(px, px.shape[1] // 3, sizes[0] if sizes else 0, h=h)
    return _gru(px, None, weight, bias, h, p, noise, seed, sizes, reverse)


def gru_step(px: Tensor, ph: Tensor, h: Tensor, p: Tensor, noise: Noise, seed: Seed) -> Tensor:
    """One step of a GRU from both products."""
    _check(px, px.shape[1] // 3, len(px), h=h)
    return _gru(px, ph, None, None, h, p, noise, seed, [len(px)], False)[0]


def _check(like: Tensor, hidden: int, rows: int, **states: Tensor) -> None:
    """Raise `ValueError` unless every state has the shape and type that kernels, which read by address, rely on."""
    for name, state in states.items():
        if state.shape != (rows, hidden) or state.dtype != like.dtype or state.device != like.device:
            raise ValueError(
                f"noisy gates: {name} must be ({rows}, {hidden}) in {like.dtype}. "
                f"Got {tuple(state.shape)} in {state.dtype}."
            )


def _walk(sizes: list[int], reverse: bool) -> list[tuple[int, int, int]]:
    """Number, first row and rows of each time step, in the order in which they are taken."""
    steps, first = [], 0
    for number, size in enumerate(sizes):
        steps.append((number, first, size))
        first += size
    return steps[::-1] if reverse else steps


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, weight: Tensor | None, h: Tensor, c: Tensor, p: Tensor, noise: Noise, seed: Seed,
        sizes: list[int], reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        f64, hidden = pre.dtype is torch.float64, c.shape[1]
        pre = resolved(pre).clone() if weight is not None else contiguous(pre)
        p = contiguous(p)
        h, c = (resolved(state).clone(memory_format=torch.contiguous_format) for state in (h, c))
        out = pre.new_empty(len(pre), hidden)
        before = torch.empty_like(out)  # the cell state before each step
        states = torch.empty_like(out)  # the hidden state before each step
        transposed = None if weight is None else weight.t()
        for number, first, size in _walk(sizes, reverse):
            step = slice(first, first + size)
            states[step] = h[:size]
            if transposed is not None:
                pre[step].addmm_(states[step], transposed)
            kernels.noisy_lstm(
                f64, noise.native(seed, number), size, hidden, pre[step].data_ptr(), p.data_ptr(), c.data_ptr(),
                out[step].data_ptr(), before[step].data_ptr(),
            )  # fmt: skip
            h[:size] = out[step]
        ctx.save_for_backward(pre, weight, p, before, states)
        ctx.rest = noise, seed, sizes, reverse
        return out, h, c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dh: Tensor, dc: Tensor) -> tuple[Tensor | None, ...]:
        pre, weight, p, before, states = ctx.saved_tensors
        pre, p, before = contiguous(pre), contiguous(p), contiguous(before)  # hooks may have changed their strides
        noise, seed, sizes, reverse = ctx.rest
        f64, hidden = pre.dtype is torch.float64, dc.shape[1]
        dh, dc = (resolved(of_state).clone(memory_format=torch.contiguous_format) for of_state in (dh, dc))
        dpre, dp = torch.empty_like(pre), torch.zeros_like(p) if ctx.needs_input_grad[4] else None
        for number, first, size in reversed(_walk(sizes, reverse)):
            step = slice(first, first + size)
            of_h = dh[:size] + dout[step]
            kernels.noisy_lstm_backward(
                f64, noise.native(seed, number), size, hidden, pre[step].data_ptr(), p.data_ptr(),
                before[step].data_ptr(), of_h.data_ptr(), dc.data_ptr(), dpre[step].data_ptr(), address(dp),
            )  # fmt: skip
            if weight is None:
                dh[:size] = 0
            else:
                torch.mm(dpre[step], weight, out=dh[:size])
        dweight = dpre.t() @ states if weight is not None and ctx.needs_input_grad[1] else None
        return dpre, dweight, dh, dc, dp, None, None, None, None


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, px: Tensor, ph: Tensor | None, weight: Tensor | None, bias: Tensor | None, h: Tensor, p: Tensor,
        noise: Noise, seed: Seed, sizes: list[int], reverse: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        f64, hidden = px.dtype is torch.float64, h.shape[1]
        px, p, h = contiguous(px), contiguous(p), h.clone(memory_format=torch.contiguous_format)
        ph, out = torch.empty_like(px) if ph is None else contiguous(ph), px.new_empty(len(px), hidden)
        before = torch.empty_like(out)
        for number, first, size in _walk(sizes, reverse):
            step = slice(first, first + size)
            if bias is not None and weight is not None:
                torch.addmm(bias, h[:size], weight.t(), out=ph[step])
            elif weight is not None:
                torch.mm(h[:size], weight.t(), out=ph[step])
            kernels.noisy_gru(
                f64, noise.native(seed, number), size, hidden, px[step].data_ptr(), ph[step].data_ptr(), p.data_ptr(),
                h.data_ptr(), before[step].data_ptr(),
            )  # fmt: skip
            out[step] = h[:size]
        ctx.save_for_backward(px, ph, weight, p, before)
        ctx.rest = noise, seed, sizes, reverse, bias is not None
        return out, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:
        px, ph, weight, p, before = ctx.saved_tensors
        px, ph, p, before = contiguous(px), contiguous(ph), contiguous(p), contiguous(before)
        noise, seed, sizes, reverse, has_bias = ctx.rest
        f64, hidden = px.dtype is torch.float64, dh.shape[1]
        dh = dh.clone(memory_format=torch.contiguous_format)
        dpx, dph = torch.empty_like(px), torch.empty_like(px)
        dp = torch.zeros_like(p) if ctx.needs_input_grad[5] else None
        for number, first, size in reversed(_walk(sizes, reverse)):
            step = slice(first, first + size)
            of_h = dh[:size].add_(dout[step])
            kernels.noisy_gru_backward(
                f64, noise.native(seed, number), size, hidden, px[step].data_ptr(), ph[step].data_ptr(), p.data_ptr(),
                before[step].data_ptr(), of_h.data_ptr(), dpx[step].data_ptr(), dph[step].data_ptr(), address(dp),
            )  # fmt: skip
            if weight is not None:
                of_h.addmm_(dph[step], weight)
        dweight = dph.t() @ before if ctx.needs_input_grad[2] else None
        dbias = dph.sum(0) if has_bias else None
        return dpx, dph if ctx.needs_input_grad[1] else None, dweight, dbias, dh, dp, None, None, None, None


_lstm, _gru = outside_graphs(_LSTM.apply), outside_graphs(_GRU.apply)
