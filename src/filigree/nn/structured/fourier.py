"""Structured layers in the Fourier basis: AFDF, circulant and Toeplitz matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from filigree.nn.dense_weight import DenseWeightAndBias
from filigree.nn.structured.sell import Sell, signs
from filigree.nn.structured.structured_onnx import PlainAFDF, PlainToeplitz


class AFDFLinear(DenseWeightAndBias, Sell):
    r"""`y = x prod_k A_k F D_k F^-1` with complex diagonals (Moczulski 2019, eqs. 3.24, 3.26).

    Order n reaches almost any matrix.

    Args:
        order: K. unitary: diagonals exp(i phi) with phases phi that are learned, as in optics (eq. 3.25).
        sigma: diagonals are drawn from N(1, sigma^2) + i N(0, sigma^2), phases from N(0, sigma^2).

    A real input gives the real part of the output; a complex one (complex64, complex128) the complex output. A_1 is the
    identity, which loses nothing. `to(dtype)` keeps the diagonals complex: complex128 in float64, else complex64.
    """

    def __init__(
        self, in_features: int, out_features: int, order: int = 1, unitary: bool = False, sigma: float = 0.061,
        seed: int = 0,
    ) -> None:  # fmt: skip
        if order < 1:
            raise ValueError(f"AFDFLinear: order must be at least 1. Got {order}.")
        super().__init__(in_features, out_features, max(in_features, out_features))
        self.order, self.unitary = order, unitary
        generator = torch.Generator().manual_seed(seed)
        for k in range(order):
            if k:
                self.add("diagonal", self._draw(sigma, generator))
            self.add("fft")
            self.add("diagonal", self._draw(sigma, generator))
            self.add("ifft")

    def _draw(self, sigma: float, generator: torch.Generator) -> nn.Parameter:
        if self.unitary:
            return nn.Parameter(sigma * torch.randn(self.size, generator=generator))
        parts = sigma * torch.randn(2, self.size, generator=generator)
        return nn.Parameter(torch.complex(1 + parts[0], parts[1]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def of_parts(tensor: Tensor) -> Tensor:
            """`fn` of the real and the imaginary part: torch's `to(dtype)` would lose the latter."""
            if not tensor.is_complex():
                return fn(tensor)
            parts = fn(torch.view_as_real(tensor))
            if parts.is_complex():
                return fn(tensor)
            if parts.dtype not in (torch.float32, torch.float64):
                return tensor.to(parts.device, torch.complex64)
            return torch.view_as_complex(parts)

        return super()._apply(of_parts, recurse)

    def run(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
            raise TypeError(f"AFDFLinear: the input must be float32, float64 or complex. Got {x.dtype}.")
        h = nn.functional.pad(x, (0, self.size - x.shape[1])) + 0j
        for kind, name in self.program:
            if name is None:
                h = torch.fft.fft(h, norm="ortho") if kind == "fft" else torch.fft.ifft(h, norm="ortho")
            else:
                d = getattr(self, name)
                h = h * (torch.polar(torch.ones_like(d), d) if self.unitary else d)
        h = h[:, : self.out_features]
        return h if x.is_complex() else h.real

    def extra_repr(self) -> str:
        return super().extra_repr() + f", order={self.order}" + (", unitary=True" if self.unitary else "")

    def onnx_form(self) -> nn.Module:
        return PlainAFDF(self)


class CirculantLinear(Sell):
    """`y = x D~ R` (Moczulski 2019, eq. 3.23): a circulant matrix R, n numbers, after a fixed diagonal of random signs.

    Args:
        random_signs: use that diagonal; without it the matrix is circulant. bias: add a bias.
    """

    def __init__(
        self, in_features: int, out_features: int, random_signs: bool = True, bias: bool = True, seed: int = 0
    ) -> None:
        n = max(in_features, out_features)
        super().__init__(in_features, out_features, n)
        generator = torch.Generator().manual_seed(seed)
        self.column = nn.Parameter(torch.randn(n, generator=generator) * n**-0.5)
        self.register_buffer("signs", signs(n, generator) if random_signs else torch.ones(n))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.program = [("diagonal", "signs"), ("fft", None), ("diagonal", "column"), ("ifft", None)]

    def run(self, x: Tensor) -> Tensor:
        n = self.size
        h = nn.functional.pad(x, (0, n - x.shape[1])) * self.get_buffer("signs")
        y = torch.fft.irfft(torch.fft.rfft(h) * torch.fft.rfft(self.column), n)[:, : self.out_features]
        return y if self.bias is None else y + self.bias

    def onnx_form(self) -> nn.Module:
        diagonals = self.column[torch.arange(1 - self.in_features, self.out_features) % self.size]
        return PlainToeplitz(self, diagonals, self.get_buffer("signs")[: self.in_features])


class ToeplitzLinear(Sell):
    """`y = x T`, T constant along its diagonals, embedded in a circulant matrix (Moczulski 2019, 3.10.4).

    T has in + out - 1 numbers: `T[i, j] = diagonals[j - i + in_features - 1]`.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, seed: int = 0) -> None:
        n = in_features + out_features - 1
        super().__init__(in_features, out_features, n)
        generator = torch.Generator().manual_seed(seed)
        self.diagonals = nn.Parameter(torch.randn(n, generator=generator) * in_features**-0.5)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.program = [("fft", None), ("diagonal", "diagonals"), ("ifft", None)]

    def run(self, x: Tensor) -> Tensor:
        n = self.size
        length = n + self.in_features - 1  # of the full convolution
        y = torch.fft.irfft(torch.fft.rfft(x, length) * torch.fft.rfft(self.diagonals, length), length)
        y = y.roll(1 - self.in_features, 1)[:, : self.out_features]  # torch 2.13's inductor fails at a slice's start
        return y if self.bias is None else y + self.bias

    def onnx_form(self) -> nn.Module:
        return PlainToeplitz(self, self.diagonals)
