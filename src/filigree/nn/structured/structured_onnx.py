"""Structured layers stand in an ONNX file in plain torch: their own numbers, and fast transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from filigree.nn.structured.onnx_transforms import Cosine, Fourier, Hadamard, InverseCosine, as_complex
from filigree.ops.sell import next_power_of_two, reference

TRANSFORMS: dict[str, Any] = {"hadamard": Hadamard, "dct": Cosine, "idct": InverseCosine}


class PlainSell(nn.Module):
    """It runs the program of a `Sell` with the transforms of `filigree.nn.structured.onnx_transforms`."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        kinds = {kind for kind, _ in layer.program}
        self.form = ", ".join(sorted(kinds))
        transforms = {kind: make(layer.size, dtype_of(layer)) for kind, make in TRANSFORMS.items() if kind in kinds}
        self.transforms = nn.ModuleDict(transforms)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        h = nn.functional.pad(x.reshape(-1, layer.in_features), (0, layer.size - layer.in_features))
        for kind, name in layer.program:
            if kind in self.transforms:
                h = self.transforms[kind](h)
            else:
                tensor = [] if name is None else [getattr(layer, name)]
                h = reference(h, [(kind, 0 if tensor else None)], layer.size, layer.size, tensor)
        return h[:, : layer.out_features].reshape(*x.shape[:-1], layer.out_features)


class PlainAFDF(nn.Module):
    """It is an `AFDFLinear` on real inputs."""

    form = "complex diagonals, dft"

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        dtype = dtype_of(layer)
        self.fft, self.ifft = Fourier(layer.size, dtype), Fourier(layer.size, dtype, inverse=True)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        h = as_complex(nn.functional.pad(x.reshape(-1, layer.in_features), (0, layer.size - layer.in_features)))
        for kind, name in layer.program:
            if name is None:
                h = self.fft(h) if kind == "fft" else self.ifft(h) / layer.size  # orthonormal, both factors in one
            else:
                d = getattr(layer, name)
                h = h * (torch.complex(d.cos(), d.sin()) if layer.unitary else d)
        return torch.view_as_real(h)[:, : layer.out_features, 0].reshape(*x.shape[:-1], layer.out_features)


class PlainToeplitz(nn.Module):
    """`y = (x signs) T + bias`, `T[i, j] = diagonals[j - i + ins - 1]`, by transforms of a power of two in length."""

    def __init__(self, layer: Any, diagonals: Tensor, signs: Tensor | None = None) -> None:
        super().__init__()
        self.ins, self.outs, self.bias = layer.in_features, layer.out_features, layer.bias
        self.form = "convolution by dft" if signs is None else "diagonal, convolution by dft"
        # of the full convolution only numbers ins - 1 to ins + outs - 2 are read: what wraps round falls before them
        self.length = next_power_of_two(self.ins + self.outs - 1)
        self.signs: Tensor | None
        self.register_buffer("spectrum", torch.fft.rfft(diagonals.detach(), self.length))
        self.register_buffer("signs", signs)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.ins)
        flat = flat if self.signs is None else flat * self.signs
        spread = torch.fft.rfft(flat, self.length) * self.get_buffer("spectrum")
        y = torch.fft.irfft(spread, self.length)[:, self.ins - 1 : self.ins + self.outs - 1]
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.outs)


class PlainFastfood(nn.Module):
    """It is a `FastfoodLinear` in eval mode, whose blocks are plain torch already."""

    form = "stacked blocks"

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        flat = x.reshape(-1, layer.in_features)
        y = torch.cat([block(flat) for block in layer.blocks], 1)[:, : layer.rows]
        if layer.bias is not None:
            y = y + layer.bias
        if layer.features == "relu":
            y = y.relu()
        elif layer.features == "cos_sin":
            y = torch.cat([y.cos(), y.sin()], 1) * layer.rows**-0.5
        return y.reshape(*x.shape[:-1], layer.out_features)


def dtype_of(layer: nn.Module) -> torch.dtype:
    """Return the real type that a layer computes in: of its parameters, or of its fixed tensors where it has none."""
    some: Any = next((t for t in [*layer.parameters(), *layer.buffers()] if t.dtype != torch.int64), None)
    return torch.get_default_dtype() if some is None else some.dtype.to_real()
