"""The papers' masked variant: dense layers whose unconnected weights are multiplied by zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.nn.capabilities import Capabilities
from filigree.nn.drop_in import ConvSettings, dense_linear
from filigree.nn.sparse.copies import TracksCopies
from filigree.nn.sparse.sparse_conv2d import SparseConv2d
from filigree.nn.sparse.sparse_layer import SparseLayer
from filigree.nn.sparse.sparse_linear import SparseLinear


class MaskedLayer(Capabilities, TracksCopies):
    """Base of both: takes over connections and weights of a sparse layer.

    In `state_dict`: `weight` in the dense layer's shape, `mask` bool, `bias`.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    mask: Tensor
    index_names = ("mask",)
    by_position = False

    def __init__(self, layer: SparseLayer, dense: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(dense.weight.detach())
        self.bias = None if layer.bias is None else nn.Parameter(dense.bias.detach())
        mask = torch.zeros(dense.weight.numel(), dtype=torch.bool)
        mask[layer.flat_indices()] = True
        self.register_buffer("mask", mask.view_as(self.weight).to(self.weight.device))

    @property
    def nnz(self) -> int:
        return int(self.mask.sum())

    @property
    def density(self) -> float:
        return self.nnz / self.mask.numel()

    def sparse(self) -> SparseLinear | SparseConv2d:
        """The equivalent truly sparse layer."""
        raise NotImplementedError

    @torch.no_grad()
    def dense(self) -> nn.Module:
        """The equivalent torch module."""
        return self.sparse().dense()

    # -- what it says of itself; see `Capabilities` --------------------------------------------------------------------

    def label(self) -> str:
        relu = " + ReLU" if getattr(self, "relu", False) else ""
        return f"{type(self).__name__}({self.density:.2%}){relu}"

    def stored_nonzeros(self) -> int:
        return super().stored_nonzeros() - int((self.weight[~self.mask] != 0).sum())

    def why_not_prunable(self) -> str | None:
        return None

    # -- what evolution needs; see SparseLayer ---------------------------------------------------------------------

    @property
    def connections(self) -> nn.Parameter:
        return self.weight

    def flat_indices(self) -> Tensor:
        return self.mask.flatten().nonzero().squeeze(1).cpu()

    def weights(self) -> Tensor:
        return self.weight.detach()[self.mask].cpu()

    @torch.no_grad()
    def rewire_(self, flat_indices: Tensor, weights: Tensor) -> None:
        flat_indices = flat_indices.to(self.mask.device)
        self.mask.zero_().view(-1)[flat_indices] = True
        self.weight.zero_().view(-1)[flat_indices] = weights.to(self.weight)
        self._copies.rewired(self)

    def permute_optimizer_state_(self, state: Tensor, source: Tensor, new: float = 0.0) -> None:
        flat_indices, is_kept = self.flat_indices().to(state.device), (source >= 0).to(state.device)
        moved = torch.zeros_like(state).view(-1)
        moved[flat_indices] = torch.where(is_kept, state.reshape(-1)[flat_indices], new)
        state.copy_(moved.view_as(state))

    # -- export: as the sparse layers that they are equal to ---------------------------------------------------------

    def onnx_candidates(self) -> dict[str, nn.Module]:
        return self.sparse().onnx_candidates()

    def onnx_operator(self) -> nn.Module | None:
        return self.sparse().onnx_operator()

    def c_form(self, name: str) -> list[Any]:
        return self.sparse().c_form(name)


class MaskedLinear(MaskedLayer):
    """`y = x (W * mask)^T + b`: the arithmetic of a `SparseLinear` at the price of an `nn.Linear`.

    The variant of Chouliaras 2021, 4.7: for comparison, and for devices without sparse kernels. Shape:
    `(..., in_features)` to `(..., out_features)`.
    """

    def __init__(self, layer: SparseLinear) -> None:
        dense = layer.dense()
        super().__init__(layer, dense[0] if isinstance(dense, nn.Sequential) else dense)
        self.relu = layer.relu

    def forward(self, x: Tensor) -> Tensor:
        self._check_copies()
        y = F.linear(x, self.weight * self.mask, self.bias)
        return y.relu() if self.relu else y

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nnz={self.nnz}, "
            f"density={self.density:.4g}, bias={self.bias is not None}" + (", relu=True" if self.relu else "")
        )

    @torch.no_grad()
    def sparse(self) -> SparseLinear:
        return SparseLinear.from_dense(dense_linear(self.weight, self.bias), self.mask, self.relu)

    def c_training_form(self, name: str) -> list[Any]:
        return self.sparse().c_training_form(name)


class MaskedConv2d(ConvSettings, MaskedLayer):
    """`nn.Conv2d` with the weight `W * mask`: the arithmetic of a `SparseConv2d` at the price of the dense one."""

    def __init__(self, layer: SparseConv2d) -> None:
        dense = layer.dense()
        super().__init__(layer, dense)
        self.take_settings_(dense)
        self._like = [dense.to("meta")]  # its hyperparameters; in a list, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        self._check_copies()
        return self._like[0]._conv_forward(x, self.weight * self.mask, self.bias)

    def extra_repr(self) -> str:
        return f"{self._like[0].extra_repr()}, nnz={self.nnz}, density={self.density:.4g}"

    def dense_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        return self.sparse().dense_gradient(x, dy)

    @torch.no_grad()
    def sparse(self) -> SparseConv2d:
        like = self._like[0].to(self.weight.dtype)
        return SparseConv2d(like, self.flat_indices(), device=self.weight.device)._fill(self)
