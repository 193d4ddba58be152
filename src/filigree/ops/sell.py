"""Structured efficient linear layers as programs: diagonals, permutations and fast transforms, one after another.

`sell` runs a program on the rows of a matrix in O(n log n) a row. The steps, on a row vector h of n numbers:

    ("diagonal", t)   h * t                      ("hadamard", None)          H h, H = Walsh-Hadamard / sqrt(n)
    ("bias", t)       h + t                      ("dct", None)               orthonormal DCT-II
    ("relu", None)    max(h, 0)                  ("idct", None)              its inverse, DCT-III
    ("permute", t)    h[t]                       ("fft", None), ("ifft", None)   orthonormal, complex
    ("band", t)       sum_j t[j] * shifted h     ("block", t)                h with each block times t[block]

The cosine transform is that of Moczulski 2019, eq. 3.27. Here t is a tensor, given by its number among `tensors`.
Programs of the first seven kinds on n a power of two, float32 or float64 on the CPU, run compiled on blocks that stay
in cache, and keep only the input for the backward pass, which computes the rest again; on CUDA an order of ACDC and a
Hadamard transform are a Triton kernel each; all else runs as `reference` does, in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from filigree.ops import gpu_sell
from filigree.ops._load import kernels
from filigree.ops.addresses import strided
from filigree.ops.sparse import FLOATS, contiguous, in_memory, resolved
from filigree.ops.transforms import batched_gradients, gradients, transforming

Steps = Sequence[tuple[str, int | None]]

_NATIVE = ("diagonal", "bias", "relu", "permute", "hadamard", "dct", "idct")


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def sell(x: Tensor, steps: Steps, size: int, outs: int, tensors: Sequence[Tensor]) -> Tensor:
    """Run a program.

    Args:
        x: `(batch, ins)`, ins <= size; padded with zeros.
        steps: `(kind, number of its tensor or None)`.
        size: n. outs: how many of the n results are kept, the first ones.
        tensors: `(size,)` each (a permutation: int64; a band: `(2 w + 1, size)`; blocks: `(size / b, b, b)`).

    Returns:
        `(batch, outs)`, in the memory order of x.
    """
    if x.dim() != 2 or x.shape[1] > size or outs > size:
        raise ValueError(f"sell: x and outs must be at most {size} wide. Got {tuple(x.shape)} and {outs}.")
    if x.is_cuda and gpu_sell.available and size & (size - 1) == 0 and x.dtype in FLOATS and not transforming():
        return _on_gpu(x, steps, size, outs, tensors)
    if _is_native(x, steps, size, tensors):
        return _Sell.apply(x, tuple(steps), size, outs, *tensors)
    return reference(x, steps, size, outs, tensors)


def _on_gpu(x: Tensor, steps: Steps, size: int, outs: int, tensors: Sequence[Tensor]) -> Tensor:
    """An order of ACDC and a Hadamard transform in one Triton kernel each, all else as `reference`."""
    steps, at = list(steps), 0
    while at < len(steps):
        kinds = [kind for kind, _ in steps[at : at + 5]]
        biased = kinds == ["diagonal", "dct", "diagonal", "bias", "idct"]
        if size >= 4 and (biased or kinds[:4] == ["diagonal", "dct", "diagonal", "idct"]):
            length = 5 if biased else 4
            a, d, *bias = (tensors[number] for _, number in steps[at : at + length] if number is not None)
            width = outs if at + length == len(steps) else size
            x = gpu_sell.acdc(x, a, d, bias[0] if biased else None, width)
            at += length
        elif kinds[0] == "hadamard" and size >= 2:
            x = gpu_sell.hadamard(torch.nn.functional.pad(x, (0, size - x.shape[1])))
            at += 1
        else:
            x = reference(x, steps[at : at + 1], size, size, tensors)
            at += 1
    return x[:, :outs]


def reference(x: Tensor, steps: Steps, size: int, outs: int, tensors: Sequence[Tensor]) -> Tensor:
    """`sell` in plain torch."""
    h = torch.nn.functional.pad(x, (0, size - x.shape[1]))
    for kind, number in steps:
        t: Any = None if number is None else tensors[number]
        if kind == "diagonal":
            h = h * t
        elif kind == "bias":
            h = h + t
        elif kind == "relu":
            h = h.relu()
        elif kind == "permute":
            h = h[:, t]
        elif kind == "band":
            h = _band(h, t)
        elif kind == "block":
            blocks, side, _ = t.shape
            h = torch.einsum("nbi,bij->nbj", h.view(-1, blocks, side), t).reshape(-1, size)
        elif h.numel():  # torch's Fourier transforms refuse empty batches
            h = TRANSFORMS[kind](h)
    return h[:, :outs]


def hadamard(x: Tensor) -> Tensor:
    """`x H`, H the Walsh-Hadamard matrix over sqrt(n); the last side n a power of two. Its own inverse."""
    n = x.shape[-1]
    if n & (n - 1):
        raise ValueError(f"hadamard: the last side must be a power of two. Got {n}.")
    h = 1
    y = x
    while h < n:
        parts = y.reshape(*x.shape[:-1], n // (2 * h), 2, h)
        y = torch.stack((parts[..., 0, :] + parts[..., 1, :], parts[..., 0, :] - parts[..., 1, :]), -2).reshape(x.shape)
        h *= 2
    return y * n**-0.5


def dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II of the last side: `y_k = s_k sum_j x_j cos(pi (2 j + 1) k / 2 n)`."""
    n = x.shape[-1]
    ordered = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    turn = _turn(x, n)
    y = torch.view_as_real(torch.fft.fft(ordered) * turn)[..., 0]
    return y * _norm(x, n)


def idct(x: Tensor) -> Tensor:
    """The inverse of `dct`, its transpose: orthonormal DCT-III."""
    n = x.shape[-1]
    y = x / _norm(x, n)
    mirrored = torch.cat([torch.zeros_like(y[..., :1]), y[..., 1:].flip(-1)], -1)
    v = torch.fft.ifft(torch.complex(y, -mirrored) * _turn(x, n).conj()).real
    out = torch.empty_like(x)
    half = (n + 1) // 2
    out = torch.stack([v[..., :half], torch.nn.functional.pad(v[..., half:].flip(-1), (0, 2 * half - n))], -1)
    return out.flatten(-2)[..., :n]


def fft(x: Tensor) -> Tensor:
    return torch.fft.fft(x, norm="ortho")


def ifft(x: Tensor) -> Tensor:
    return torch.fft.ifft(x, norm="ortho")


TRANSFORMS: dict[str, Any] = {"hadamard": hadamard, "dct": dct, "idct": idct, "fft": fft, "ifft": ifft}


def _turn(x: Tensor, n: int) -> Tensor:
    k = torch.arange(n, device=x.device, dtype=x.dtype)
    return torch.polar(torch.ones_like(k), -torch.pi * k / (2 * n))


def _norm(x: Tensor, n: int) -> Tensor:
    norm = torch.full((n,), (2 / n) ** 0.5, dtype=x.dtype, device=x.device)
    norm[0] = n**-0.5
    return norm


def _band(h: Tensor, t: Tensor) -> Tensor:
    reach = t.shape[0] // 2
    padded = torch.nn.functional.pad(h, (reach, reach))
    return sum((padded[:, j : j + h.shape[1]] * t[j] for j in range(t.shape[0])), torch.zeros_like(h))


def _is_native(x: Tensor, steps: Steps, size: int, tensors: Sequence[Tensor]) -> bool:
    return (
        in_memory(x)
        and x.dtype in FLOATS
        and size & (size - 1) == 0
        and all(kind in _NATIVE for kind, _ in steps)
        and all(t.is_cpu and t.shape == (size,) and t.dtype in (x.dtype, torch.int64) for t in tensors)
    )


class _Sell(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: tuple[Any, ...], size: int, outs: int, *tensors: Tensor) -> Tensor:
        x = resolved(x)
        ctx.steps, ctx.size, ctx.outs = steps, size, outs
        ctx.save_for_backward(x, *tensors)
        y = _like(x, outs)
        held, program = _program(steps, size, tensors)
        kernels.sell(x.dtype is torch.float64, program, *x.shape, strided(x), outs, strided(y))
        del held
        return y.data  # no view, so that it may be changed in place

    @staticmethod
    @batched_gradients
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled() or transforming():  # it is to be differentiated itself, or is batched
            dx, *rest = gradients(
                lambda x, *tensors: reference(x, ctx.steps, ctx.size, ctx.outs, tensors), (x, *tensors),
                (needs[0], *needs[4:]), dy,
            )  # fmt: skip
            return dx, None, None, None, *rest
        x, dy = resolved(x), resolved(dy)
        if dy.stride() != x.stride() and min(dy.stride()) != 1:
            dy = dy.contiguous()
        dx = _like(x, x.shape[1]) if needs[0] else None
        held, program = _program(ctx.steps, ctx.size, tensors)
        totals: list[Tensor | None] = [None] * len(tensors)
        addresses: list[int] = []
        extra: list[tuple[int | None, Tensor | None]] = []
        for _, number in ctx.steps:
            wanted_here = number is not None and needs[4 + number]
            gradient = x.new_empty(ctx.size) if wanted_here else None
            addresses.append(0 if gradient is None else gradient.data_ptr())
            extra.append((number, gradient))
        kernels.sell_backward(
            x.dtype is torch.float64, program, *x.shape, strided(x), ctx.outs, strided(dy), strided(dx), addresses,
        )  # fmt: skip
        del held
        for number, gradient in extra:
            if gradient is not None and number is not None:  # a tensor may serve several steps
                before = totals[number]
                totals[number] = gradient if before is None else before + gradient
        return dx, None, None, None, *totals


def _like(x: Tensor, width: int) -> Tensor:
    """A matrix `(batch, width)` in the memory order of x."""
    if x.stride(0) == 1 and x.shape[0] > 1:
        return x.new_empty(width, x.shape[0]).t()
    return x.new_empty(x.shape[0], width)


def _program(steps: Any, size: int, tensors: Sequence[Tensor]) -> tuple[list[Tensor], tuple[Any, ...]]:
    """The tensors that must live as long as the addresses, and the `Program` of the kernels."""
    held = [contiguous(t) for t in tensors]
    data = [0 if number is None else held[number].data_ptr() for _, number in steps]
    return held, (size, [_NATIVE.index(kind) for kind, _ in steps], data)
