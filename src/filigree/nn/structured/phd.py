"""The fast Johnson-Lindenstrauss transform: a sparse Gaussian matrix after a Hadamard transform with random signs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from filigree.nn.capabilities import Capabilities
from filigree.nn.dense_weight import DenseWeightAndBias
from filigree.nn.drop_in import dense_linear
from filigree.nn.sparse.sparse_linear import SparseLinear
from filigree.nn.structured.sell import Sell, signs
from filigree.ops.sell import next_power_of_two
from filigree.topology import ErdosRenyi


class PHDLinear(Capabilities, DenseWeightAndBias, nn.Module):
    """`y = P H D x` (Moczulski 2019, eqs. 3.15 and 3.21): D random signs, H normalised, P sparse, of N(0, 1 / (q d)).

    Args:
        density: q, the share of P that is not zero. adaptive: P is learned; else it is fixed too.

    In the fixed form `E |y|^2 = out / d |x|^2`. Shape: `(..., in_features)` to `(..., out_features)`; d is the padded
    power of two.
    """

    def __init__(
        self, in_features: int, out_features: int, density: float = 0.1, adaptive: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        generator = torch.Generator().manual_seed(seed)
        d = next_power_of_two(in_features)
        self.mix = Sell(in_features, d, d)
        self.mix.add("diagonal", signs(d, generator))
        self.mix.add("hadamard")
        self.sparse = SparseLinear(d, out_features, ErdosRenyi(density=density), bias=False, seed=seed)
        with torch.no_grad():
            self.sparse.values.copy_(torch.randn(self.sparse.nnz, generator=generator) * (density * d) ** -0.5)
        self.sparse.requires_grad_(adaptive)

    def forward(self, x: Tensor) -> Tensor:
        return self.sparse(self.mix(x))

    def why_not_prunable(self) -> str | None:
        return "is a structured layer, whose inputs cannot go"

    @property
    def macs(self) -> int:
        return self.mix.macs + self.sparse.nnz

    @torch.no_grad()
    def dense(self) -> nn.Linear:
        """The equivalent `nn.Linear`."""
        eye = torch.eye(self.in_features).to(self.sparse.values)
        return dense_linear(self.forward(eye).t(), None)  # without the hooks of a user, as a weight is
