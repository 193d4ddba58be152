"""Structured efficient linear layers: O(n log n) in place of O(n^2), as programs of diagonals and fast transforms."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from filigree.modes import evaluating
from filigree.nn.capabilities import Capabilities
from filigree.nn.dense_weight import DenseWeight
from filigree.nn.drop_in import dense_linear
from filigree.nn.structured.structured_onnx import PlainSell
from filigree.ops.sell import sell


class Sell(Capabilities, DenseWeight, nn.Module):
    """Base of the family y = x Phi(D, P, S, B) (Moczulski 2019, eq. 3.20); members fill `program`.

    Attributes:
        size: n of the transforms; inputs are padded with zeros to it, and the first `out_features` numbers kept.
        program: steps as of `filigree.ops.sell`: `(kind, name of the attribute that holds its tensor, or None)`.

    Shape: `(..., in_features)` to `(..., out_features)`. Dense equivalent: `dense()`.
    """

    def __init__(self, in_features: int, out_features: int, size: int) -> None:
        super().__init__()
        for name, side in (("in_features", in_features), ("out_features", out_features)):
            if side < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1. Got {side}.")
        self.in_features, self.out_features, self.size = in_features, out_features, size
        self.program: list[tuple[str, str | None]] = []

    def add(self, kind: str, tensor: Tensor | nn.Parameter | None = None) -> None:
        """Append a step, with its parameter or its fixed tensor if it has one."""
        name = None
        if tensor is not None:
            name = f"{kind}{sum(1 for step, _ in self.program if step == kind)}"
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)
        self.program.append((kind, name))

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if x.dtype in (torch.float16, torch.bfloat16):  # transforms are computed in float32
            own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
            wide = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in own.items()}
            return torch.func.functional_call(self, wide, (x.float(),)).to(x.dtype)
        rows = x.reshape(-1, self.in_features)
        if not len(rows) and any(kind in ("fft", "ifft") for kind, _ in self.program):  # which FFTs refuse
            nothing = sum(p.abs().sum() for p in self.parameters()) * 0
            return rows.sum() + nothing + x.new_zeros(*x.shape[:-1], self.out_features)
        return self.run(rows).reshape(*x.shape[:-1], self.out_features)

    def run(self, x: Tensor) -> Tensor:
        """Run the program on `(batch, in_features)`."""
        named = [name for _, name in self.program if name is not None]
        numbers = {name: i for i, name in enumerate(named)}
        steps = [(kind, None if name is None else numbers[name]) for kind, name in self.program]
        return sell(x, steps, self.size, self.out_features, [getattr(self, name) for name in named])

    def check_input(self, x: Tensor) -> None:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"{type(self).__name__}: the input's last side must be in_features={self.in_features}. "
                f"Got {tuple(x.shape)}."
            )

    uncounted = True

    def why_not_prunable(self) -> str | None:
        return "is a structured layer, whose inputs cannot go"

    @property
    def macs(self) -> int:
        """Multiply-adds a sample: n a diagonal, w n a band or blocks of width w, n log2 n an n-point transform (a
        Hadamard's are additions)."""
        total, transform = 0, self.size * max(1, math.ceil(math.log2(max(self.size, 2))))
        for kind, name in self.program:
            if name is not None:
                shape = getattr(self, name).shape
                total += self.size * {"band": shape[0], "block": shape[-1]}.get(kind, 1)
            elif kind in ("hadamard", "dct", "idct", "fft", "ifft"):
                total += transform
        return total

    @torch.no_grad()
    def dense(self) -> nn.Linear:
        """The equivalent `nn.Linear`, bias included. Layers with a ReLU inside have none."""
        if any(kind == "relu" for kind, _ in self.program):
            raise ValueError(f"{type(self).__name__}: with a ReLU inside it is not linear.")
        like: Any = next(itertools.chain(self.parameters(), self.buffers()))
        dtype = like.real.dtype if like.is_complex() else like.dtype
        eye = torch.eye(self.in_features, dtype=dtype, device=like.device)
        with evaluating(self):  # and without the hooks of a user, as a weight is
            bias = self.forward(torch.zeros_like(eye[:1]))[0]
            weight = (self.forward(eye) - bias).t()
        return dense_linear(weight, bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, size={self.size}"

    def onnx_form(self) -> nn.Module:
        return PlainSell(self)


def diagonal(n: int, sigma: float, generator: torch.Generator, mean: float = 1.0) -> nn.Parameter:
    """A diagonal drawn from N(mean, sigma^2)."""
    return nn.Parameter(mean + sigma * torch.randn(n, generator=generator))


def signs(n: int, generator: torch.Generator) -> Tensor:
    """n numbers drawn from +1 and -1."""
    return torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
