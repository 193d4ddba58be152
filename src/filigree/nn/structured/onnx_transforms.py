"""Fast transforms are made of operators that ONNX has: `DFT`, and products with small matrices."""

from __future__ import annotations

import math

import scipy
import torch
from torch import Tensor, nn

from filigree.ops.sell import next_power_of_two

_SIDE = 16  # of the small matrices: fastest of 2 to 64 in ONNX Runtime on 256 to 4096 numbers


class Hadamard(nn.Module):
    """`x H / sqrt(n)` of `(batch, n)`, n a power of two, H the Walsh-Hadamard matrix: O(n log n).

    A product with the matrix of side 16 is four rounds of butterflies in one operator: the first digit (to the base 16)
    of an index goes last, and is multiplied with it, until each digit has been last once and stands where it stood.
    """

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.n, self.sides = n, [n]
        while self.sides[-1] > _SIDE:
            self.sides[-1:] = [_SIDE, self.sides[-1] // _SIDE]
        for side in set(self.sides):
            matrix = torch.as_tensor(scipy.linalg.hadamard(side)).double() * side**-0.5
            self.register_buffer(f"matrix{side}", matrix.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        for side in self.sides:
            x = x.reshape(-1, side, self.n // side).transpose(1, 2) @ self.get_buffer(f"matrix{side}")
        return x.reshape(-1, self.n)


class Fourier(nn.Module):
    """It computes the discrete Fourier transform of `(batch, n)` complex numbers, without a factor, by ONNX's `DFT`.

    Of n that is no power of two as a convolution with a chirp, of a power of two in length (Bluestein 1970): ONNX
    Runtime does the same, but with angles in single precision.
    """

    def __init__(self, n: int, dtype: torch.dtype, inverse: bool = False) -> None:
        super().__init__()
        self.n, self.inverse, self.length = n, inverse, n
        if n & (n - 1):
            self.length = next_power_of_two(2 * n - 1)
            square = torch.arange(n) ** 2 % (2 * n)  # full turns are taken out while the numbers are whole
            angle = square.double() * (math.pi / n * (1 if inverse else -1))
            chirp = torch.polar(torch.ones_like(angle), angle)
            kernel = torch.zeros(self.length, dtype=torch.complex128)
            kernel[:n] = chirp.conj()
            kernel[self.length - n + 1 :] = chirp.conj()[1:].flip(0)
            self.register_buffer("chirp", chirp.to(dtype.to_complex()))
            self.register_buffer("spectrum", torch.fft.fft(kernel).to(dtype.to_complex()))

    def forward(self, z: Tensor) -> Tensor:
        if self.length == self.n:
            return torch.fft.ifft(z, norm="forward") if self.inverse else torch.fft.fft(z)
        chirp = self.get_buffer("chirp")
        parts = torch.view_as_real(z * chirp)  # the exporter pads real numbers only
        padded = torch.view_as_complex(nn.functional.pad(parts, (0, 0, 0, self.length - self.n)))
        return torch.fft.ifft(torch.fft.fft(padded) * self.get_buffer("spectrum"))[:, : self.n] * chirp


class Cosine(nn.Module):
    """It computes the orthonormal DCT-II of `(batch, n)`, as `filigree.ops.sell.dct`, by one Fourier transform."""

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.fourier = Fourier(n, dtype)
        self.register_buffer("order", _order(n))
        angle = math.pi * torch.arange(n).double() / (2 * n)
        turn = torch.stack([angle.cos(), angle.sin()], -1) * _norm(n)[:, None]
        self.register_buffer("turn", turn.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        z = self.fourier(as_complex(x.index_select(1, self.get_buffer("order"))))
        return (torch.view_as_real(z) * self.get_buffer("turn")).sum(-1)


class InverseCosine(nn.Module):
    """It inverts `Cosine`."""

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.fourier = Fourier(n, dtype, inverse=True)
        index = torch.arange(n)
        angle, norm = math.pi * index.double() / (2 * n), _norm(n)
        mirrored = (n - index) % n
        own = torch.stack([angle.cos(), angle.sin()], -1) / (n * norm[:, None])
        others = torch.stack([angle.sin(), -angle.cos()], -1) / (n * norm[mirrored, None])
        others[0] = 0  # the first has no mirror image
        self.register_buffer("mirrored", mirrored)
        self.register_buffer("own", own.to(dtype))
        self.register_buffer("others", others.to(dtype))
        self.register_buffer("order", _order(n).argsort())

    def forward(self, x: Tensor) -> Tensor:
        image = x.index_select(1, self.get_buffer("mirrored"))
        h = x.unsqueeze(-1) * self.get_buffer("own") + image.unsqueeze(-1) * self.get_buffer("others")
        v = torch.view_as_real(self.fourier(torch.view_as_complex(h)))[..., 0]
        return v.index_select(1, self.get_buffer("order"))


def as_complex(x: Tensor) -> Tensor:
    """Make x complex; the exporter's own sum with 0j fails in float64."""
    return torch.complex(x, torch.zeros_like(x))


def _order(n: int) -> Tensor:
    """List even indices upwards, then odd ones downwards."""
    return torch.cat([torch.arange(0, n, 2), torch.arange(1, n, 2).flip(0)])


def _norm(n: int) -> Tensor:
    norm = torch.full((n,), (2 / n) ** 0.5, dtype=torch.float64)
    norm[0] = n**-0.5
    return norm
