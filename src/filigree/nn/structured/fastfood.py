"""Fastfood: random features in O(n log d), and layers that learn its diagonals."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from filigree.config import check_choice
from filigree.nn.capabilities import Capabilities
from filigree.nn.dense_weight import DenseWeight
from filigree.nn.drop_in import dense_linear
from filigree.nn.structured.sell import Sell, signs
from filigree.nn.structured.structured_onnx import PlainFastfood
from filigree.ops.c_steps import refuse, relu
from filigree.ops.dropout import dropout
from filigree.ops.sell import next_power_of_two


class FastfoodBlock(Sell):
    """`y = S H G Pi H B x` (Moczulski 2019, eq. 3.10), d to d: d the padded power of two, H normalised.

    B = +-1, Pi a permutation, G ~ N(0, 1), S_i = sigma sqrt(d) chi_d / |G|: in this random form the rows of the matrix
    are distributed as Gaussians of deviation sigma in length, almost orthogonal to one another.
    """

    def __init__(self, in_features: int, sigma: float, adaptive: bool, generator: torch.Generator) -> None:
        d = next_power_of_two(in_features)
        super().__init__(in_features, d, d)
        gaussian = torch.randn(d, generator=generator)
        chi = torch.randn(d, d, generator=generator).norm(dim=1) if d <= 2048 else _chi(d, generator)
        scale = sigma * d**0.5 * chi / gaussian.norm()
        for kind, tensor in (
            ("diagonal", signs(d, generator)), ("hadamard", None), ("permute", torch.randperm(d, generator=generator)),
            ("diagonal", gaussian), ("hadamard", None), ("diagonal", scale),
        ):  # fmt: skip
            learns = adaptive and kind == "diagonal" and tensor is not None
            self.add(kind, nn.Parameter(tensor) if learns else tensor)  # type: ignore[arg-type]


class FastfoodLinear(Capabilities, DenseWeight, nn.Module):
    """A linear layer of stacked Fastfood blocks (Moczulski 2019, 3.9): 3 d numbers a block, d the padded input width.

    Args:
        adaptive: the diagonals S, G, B are learned (Adaptive Fastfood); else random and fixed.
        sigma: deviation of the entries of the random form that it starts from, 1 / length scale of the RBF kernel that
            its features approximate; by default sqrt(2 / in_features), He's for a ReLU after it.
        bias: add a bias; Moczulski 2019 has none.
        features: "relu": ReLU features (the arc-cosine kernel); "cos_sin": sqrt(1 / n) (cos, sin) of the
            n = out_features / 2 projections (the RBF kernel, eq. 3.17); None: linear.
        dropout: before B, after Pi and after S (3.9.7.1).

    Shape: `(..., in_features)` to `(..., out_features)`: as many blocks as are needed, cut to that.
    """

    def __init__(
        self, in_features: int, out_features: int, adaptive: bool = True, sigma: float | None = None,
        bias: bool = False, features: Literal["relu", "cos_sin"] | None = None, dropout: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("FastfoodLinear", "features", features, ("relu", "cos_sin", None))
        if in_features < 1 or out_features < 1 or (features == "cos_sin" and out_features % 2):
            raise ValueError(
                "FastfoodLinear: in_features and out_features must be at least 1, the latter even for cos_sin. "
                f"Got {in_features} and {out_features}."
            )
        self.in_features, self.out_features, self.features, self.dropout = in_features, out_features, features, dropout
        self.rows = out_features // 2 if features == "cos_sin" else out_features
        generator = torch.Generator().manual_seed(seed)
        sigma = (2 / in_features) ** 0.5 if sigma is None else sigma
        d = next_power_of_two(in_features)
        self.blocks = nn.ModuleList(
            FastfoodBlock(in_features, sigma, adaptive, generator) for _ in range(-(-self.rows // d))
        )
        self.bias = nn.Parameter(torch.zeros(self.rows)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"FastfoodLinear: the input's last side must be in_features={self.in_features}. Got {tuple(x.shape)}."
            )
        flat = x.reshape(-1, self.in_features)
        parts = [self._block(block, flat) for block in self.blocks]
        y = (parts[0] if len(parts) == 1 else torch.cat(parts, 1))[:, : self.rows]
        if self.bias is not None:
            y = y + self.bias
        if self.features == "relu":
            y = y.relu()
        elif self.features == "cos_sin":
            y = torch.cat([y.cos(), y.sin()], 1) * self.rows**-0.5
        return y.reshape(*x.shape[:-1], self.out_features)

    def _block(self, block: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(block, FastfoodBlock)
        if not (self.dropout and self.training):
            return block.run(x)
        x = nn.functional.pad(x, (0, block.size - x.shape[1]))
        whole = block.program
        for part in (whole[:3], whole[3:]):  # up to Pi, and the rest
            x = dropout(x, self.dropout)
            block.program = part
            try:
                x = block.run(x)
            finally:
                block.program = whole
        return dropout(x, self.dropout)

    uncounted = True

    def why_not_prunable(self) -> str | None:
        return "is a structured layer, whose inputs cannot go"

    @property
    def macs(self) -> int:
        """Multiply-adds a sample; an addition of a Hadamard transform counts as one."""
        return sum(block.macs for block in self.blocks if isinstance(block, FastfoodBlock))

    @torch.no_grad()
    def dense(self) -> nn.Linear:
        """The equivalent `nn.Linear` (without the features' nonlinearity)."""
        weight = torch.cat([block.dense().weight for block in self.blocks])[: self.rows]  # type: ignore[operator]
        return dense_linear(weight, self.bias)

    def extra_repr(self) -> str:
        learns = any(p.requires_grad for p in self.blocks.parameters())
        return f"in_features={self.in_features}, out_features={self.out_features}, adaptive={learns}" + (
            f", features={self.features!r}" if self.features else ""
        )

    def onnx_form(self) -> nn.Module:
        return PlainFastfood(self)

    def c_form(self, name: str) -> list[Any]:
        if self.features == "cos_sin":
            raise refuse(name, "has cosines and sines as features, which cannot be written as C")
        return [(name, self.dense()), *([relu(name)] if self.features == "relu" else [])]


def _chi(d: int, generator: torch.Generator) -> Tensor:
    """d draws of the chi distribution with d degrees of freedom, without d^2 numbers (Wilson and Hilferty 1931)."""
    normal = torch.randn(d, generator=generator, dtype=torch.float64)
    square = d * (1 - 2 / (9 * d) + normal * (2 / (9 * d)) ** 0.5) ** 3
    return square.sqrt().float()
