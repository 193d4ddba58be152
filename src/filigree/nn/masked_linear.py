"""The papers' masked variant: a dense layer whose unconnected weights are multiplied by zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.nn.sparse_linear import SparseLinear


class MaskedLinear(nn.Module):
    """`y = x (W * mask)^T + b`: the arithmetic of a sparse layer at the price of a dense one (001, 4.7).

    For comparison, and for devices without sparse kernels. Takes over connections and weights of a `SparseLinear`.

    Shape: `(..., in_features)` to `(..., out_features)`. In `state_dict`: `weight` `(out, in)`, `mask` bool, `bias`.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    mask: Tensor

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.relu = layer.in_features, layer.out_features, layer.relu
        dense = layer.dense()
        linear = dense[0] if isinstance(dense, nn.Sequential) else dense
        assert isinstance(linear, nn.Linear)
        self.weight = nn.Parameter(linear.weight.detach())
        self.bias = None if layer.bias is None else nn.Parameter(linear.bias.detach())
        mask = torch.zeros(self.out_features * self.in_features, dtype=torch.bool)
        mask[layer.places()] = True
        self.register_buffer("mask", mask.view_as(self.weight).to(self.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight * self.mask, self.bias)
        return y.relu() if self.relu else y

    @property
    def nnz(self) -> int:
        return int(self.mask.sum())

    @property
    def density(self) -> float:
        return self.nnz / self.mask.numel()

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nnz={self.nnz}, "
            f"density={self.density:.4g}, bias={self.bias is not None}" + (", relu=True" if self.relu else "")
        )

    @torch.no_grad()
    def dense(self) -> nn.Module:
        """The equivalent torch module."""
        return self.sparse().dense()

    @torch.no_grad()
    def sparse(self) -> SparseLinear:
        """The equivalent truly sparse layer."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None).to(self.weight)
        linear.weight.copy_(self.weight)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return SparseLinear.from_dense(linear, self.mask, self.relu)

    # -- what evolution needs; see SparseLinear --------------------------------------------------------------------

    @property
    def connections(self) -> nn.Parameter:
        return self.weight

    def places(self) -> Tensor:
        return self.mask.flatten().nonzero().squeeze(1).cpu()

    def weights(self) -> Tensor:
        return self.weight.detach()[self.mask].cpu()

    @torch.no_grad()
    def rewire_(self, places: Tensor, weights: Tensor) -> None:
        places = places.to(self.mask.device)
        self.mask.zero_().view(-1)[places] = True
        self.weight.zero_().view(-1)[places] = weights.to(self.weight)

    def carry_(self, state: Tensor, source: Tensor) -> None:
        kept = torch.zeros_like(self.mask).view(-1)
        kept[self.places().to(kept.device)[(source >= 0).to(kept.device)]] = True
        state.mul_(kept.view_as(state))
