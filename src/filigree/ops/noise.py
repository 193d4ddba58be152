"""Noisy activations (Moczulski 2019, 4.3), by kernels and in plain torch.

The plain functions are the reference of the tests, and run on devices without kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from filigree.modes import outside_graphs
from filigree.ops._load import compiled, kernels
from filigree.ops.addresses import address
from filigree.ops.memory import contiguous
from filigree.ops.once_differentiable import once_differentiable
from filigree.ops.transforms import transforming

KINDS = ("NAN", "NAH", "NANI", "NANIL", "NANIS")
HALF_NORMAL_MEAN = math.sqrt(2 / math.pi)
Seed = Tensor | float  # an int64 scalar: of normal numbers; a float: the number that stands for all of them


@dataclass(frozen=True)
class Noise:
    """The numbers of a noisy activation: `kind`, alpha of 4.15, c of 4.10, sigma of 4.18 and 4.19."""

    kind: str = "NAH"
    alpha: float = 0.9
    c: float = 0.5
    sigma: float = 0.05

    def native(self, seed: Seed, step: int = 0) -> tuple[Any, ...]:
        """These numbers as kernels take them; each step of a sequence has a seed of its own."""
        random = isinstance(seed, Tensor)
        key = (int(seed) + step * 0x9E3779B97F4A7C15) % 2**64 if random else 0
        value = 0.0 if random else float(seed)
        return KINDS.index(self.kind), self.alpha, self.c, self.sigma, random, value, key


def draw_seed() -> Tensor:
    """A seed drawn from torch's global generator, so that `torch.manual_seed` determines it."""
    return torch.empty((), dtype=torch.int64).random_()


def normals(like: Tensor, seed: Tensor, step: int = 0) -> Tensor:
    """The normal numbers of kernels for this seed, by position in memory: quantiles to 0.001, none above 4.74."""
    out = torch.empty_like(like)
    key = (int(seed) + step * 0x9E3779B97F4A7C15) % 2**64
    kernels.normals(like.dtype is torch.float64, out.numel(), key, out.data_ptr())
    return out


def runs_kernels(x: Tensor) -> bool:
    """Whether x has memory that kernels can read; subclasses of tensors may have none, and tensors in transforms."""
    plain = compiled and type(x) in (Tensor, Parameter) and x.is_cpu and x.dtype in (torch.float32, torch.float64)
    return plain and not transforming()


# -- plain torch -----------------------------------------------------------------------------------------------------


def line(x: Tensor, tanh: bool) -> Tensor:
    """u of 4.1 and 4.2."""
    return x if tanh else 0.25 * x + 0.5


def hard(x: Tensor, tanh: bool) -> Tensor:
    """h of 4.3 and 4.4."""
    return line(x, tanh).clamp(-1.0 if tanh else 0.0, 1.0)


def noisy_reference(x: Tensor, p: Tensor | float, xi: Tensor | float, noise: Noise, tanh: bool) -> Tensor:
    """phi(x, xi) of 4.15, 4.18 and 4.19 for given noise, p broadcast against x; `|xi|` is taken of NAH's."""
    if noise.kind == "NANI":
        return hard(x + noise.sigma * xi, tanh)
    if noise.kind == "NANIS":
        return hard(x + noise.sigma * xi * _saturated(x, tanh), tanh)
    delta = hard(x, tanh) - line(x, tanh)
    scale = noise.c * ((p * delta).sigmoid() - 0.5).square()
    if noise.kind == "NANIL":
        return hard(x + scale * xi, tanh)
    direction = torch.where(x >= 0, -1.0, 1.0).to(x.dtype)  # d(x) of 4.14 with sgn(0) = 1
    epsilon: Any = abs(xi) if noise.kind == "NAH" else xi
    y = hard(x, tanh) if noise.alpha == 1 else line(x, tanh) + noise.alpha * delta  # sums would cancel at large x
    return y + (1 if noise.alpha <= 1 else -1) * direction * scale * epsilon


def expected_input_noise(x: Tensor, p: Tensor | float, noise: Noise, tanh: bool) -> Tensor:
    """E phi(x, xi) of NANI, NANIL and NANIS for normal noise, exact.

    With v = u(x) + tau xi, tau the noise's deviation times u's slope, and a, b the ends of h's range measured from u(x)
    in tau: `E clip(v) = low Phi(a) + high (1 - Phi(b)) + u (Phi(b) - Phi(a)) + tau (phi(a) - phi(b))`.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        return expected_input_noise(x.float(), p, noise, tanh).to(x.dtype)
    h, u, slope, low = hard(x, tanh), line(x, tanh), (1.0 if tanh else 0.25), (-1.0 if tanh else 0.0)
    if noise.kind == "NANIL":
        tau = slope * noise.c * ((p * (h - u)).sigmoid() - 0.5).square()
    else:
        tau = slope * noise.sigma * (torch.ones_like(x) if noise.kind == "NANI" else _saturated(x, tanh))
    safe = tau.clamp(min=1e-12)
    a, b = (low - u) / safe, (1.0 - u) / safe
    density = [torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi) for z in (a, b)]
    below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
    mixed = low * below + above + u * (1 - below - above) + tau * (density[0] - density[1])
    return torch.where(tau > 1e-12, mixed, h)


def _saturated(x: Tensor, tanh: bool) -> Tensor:
    u = line(x, tanh)
    return ((u <= (-1.0 if tanh else 0.0)) | (u >= 1.0)).to(x.dtype)


# -- kernels: activations --------------------------------------------------------------------------------------------


def noisy(x: Tensor, p: Tensor, noise: Noise, tanh: bool, seed: Seed, dim: int = -1) -> Tensor:
    """phi(x, xi), one fused pass forward and one back, for normal noise of `seed`: `noisy_reference(x, p,
    normals(x, seed), ...)`. The backward pass needs x and one more number an element.

    Args:
        x: CPU, float32 or float64, any shape. p: one number, or one for each unit, of x's type.
        dim: along which the units lie.
    """
    return _apply(x, p, noise, tanh, seed, dim)


def _layout(x: Tensor, units: int, dim: int) -> tuple[int, int, int]:
    """x, dense in memory, as (outer, units, inner)."""
    if units == 1 or not x.numel() or x.stride(dim) == 1:
        return x.numel() // units, units, 1
    inner = math.prod(n for n, s in zip(x.shape, x.stride(), strict=True) if s < x.stride(dim))
    return x.numel() // (units * inner), units, inner


def _dense(x: Tensor) -> Tensor:
    """x itself if it lies in memory without gaps, in whatever order, else a contiguous copy."""
    x = x.resolve_neg()
    if x.is_contiguous():
        return x
    reached = 1
    for stride, size in sorted((s, n) for n, s in zip(x.shape, x.stride(), strict=True) if n != 1):
        if stride != reached:
            return x.contiguous()
        reached *= size
    return x


class _Noisy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor, noise: Noise, tanh: bool, seed: Seed, dim: int) -> Tensor:
        x, p = _dense(x), contiguous(p)
        ctx.arguments = noise, seed, tanh, _layout(x, p.numel(), dim), x.stride()
        y = torch.empty_like(x)
        kept = torch.empty_like(x) if any(ctx.needs_input_grad[:2]) else None
        kernels.noisy(
            x.dtype is torch.float64, noise.native(seed), tanh, ctx.arguments[3], x.data_ptr(), p.data_ptr(),
            y.data_ptr(), address(kept),
        )  # fmt: skip
        ctx.save_for_backward(x, p, kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        noise, seed, tanh, layout, order = ctx.arguments
        x, p, kept = ctx.saved_tensors
        x, kept, dy, p = _in_order(x, order), _in_order(kept, order), _in_order(dy, order), contiguous(p)
        dx, dp = torch.empty_like(x), torch.empty_like(p) if ctx.needs_input_grad[1] else None
        kernels.noisy_backward(
            x.dtype is torch.float64, noise.native(seed), tanh, layout, x.data_ptr(), p.data_ptr(), kept.data_ptr(),
            dy.data_ptr(), dx.data_ptr(), address(dp),
        )  # fmt: skip
        return dx, dp, None, None, None, None


def _in_order(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """x with these strides: gradients, and tensors that came back from hooks, may have others."""
    return x if x.stride() == order and not x.is_neg() else x.new_empty_strided(x.shape, order).copy_(x)


_apply = outside_graphs(_Noisy.apply)
