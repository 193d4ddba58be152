"""Linear layers of low rank: the truncated singular value decomposition of a trained or an initial weight."""

from __future__ import annotations

from typing import Annotated, Any, Self

import pydantic
import torch
from torch import Tensor, nn

from filigree.config import config
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.capabilities import Capabilities
from filigree.nn.dense_weight import DenseWeightAndBias
from filigree.nn.drop_in import dense_linear


class LowRankLinear(Capabilities, DenseWeightAndBias, nn.Module):
    """`y = x V^T U^T + b` with U `(out, rank)` and V `(rank, in)`: rank (in + out) weights in place of in x out.

    Dense equivalent: `dense()`.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias)

    @classmethod
    @torch.no_grad()
    def like(cls, linear: nn.Linear, rank: int) -> LowRankLinear:
        """The best approximation of the layer's weight of this rank.

        Both factors hold the square roots of the singular values.
        """
        layer = cls(linear.in_features, linear.out_features, rank, linear.bias is not None)
        if linear.weight.is_meta:
            return layer
        u, s, v = torch.linalg.svd(linear.weight, full_matrices=False)
        root = s[:rank].sqrt()
        layer.down = dense_linear(root[:, None] * v[:rank], None)
        layer.up = dense_linear(u[:, :rank] * root, linear.bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))

    def label(self) -> str:
        return f"LowRankLinear(rank={self.rank})"

    @torch.no_grad()
    def dense(self) -> nn.Linear:
        """The equivalent `nn.Linear`."""
        return dense_linear(self.up.weight @ self.down.weight, self.up.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"

    def c_form(self, name: str) -> list[Any]:
        return [(f"{name}.down", self.down), (f"{name}.up", self.up)]


@config
class LowRank(Conversion):
    """Linear layers become products of two of low rank (Moczulski 2019, table 3.4: SVD-half and SVD-quarter).

    It is used with `fg.compress_` after training, or with `fg.convert_` before it to decompose the initial weight.

    Args:
        rank: a number, or a fraction of the smaller side (.5 and .25 are the table's). energy: the least rank whose
            singular values hold this share of the sum of all their squares. One of the two.
    """

    rank: Annotated[int, pydantic.Field(ge=1)] | Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    energy: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise ValueError(f"LowRank: give rank or energy. Got rank={self.rank} and energy={self.energy}.")

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {"LowRank": cls(4)}

    def accepts(self, module: nn.Module) -> bool:
        return type(module) is nn.Linear

    def gains(self, module: nn.Module) -> bool:
        layer: Any = module
        return self._rank(layer) * (layer.in_features + layer.out_features) < layer.weight.numel()

    def choose(self, model: nn.Module, names: list[str]) -> list[tuple[Conversion, list[str], str]]:
        return [(LowRank(self._rank(model.get_submodule(name))), [name], "") for name in names]

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        changes = []
        for name in names:
            layer: Any = model.get_submodule(name)
            low_rank = LowRankLinear.like(layer, self._rank(layer))
            replace_module(model, name, low_rank)
            note = "larger than dense" if low_rank.macs >= layer.weight.numel() else ""
            changes.append(Change.of(name, layer, low_rank, note))
        return changes

    def _rank(self, layer: Any) -> int:
        least = min(layer.in_features, layer.out_features)
        if isinstance(self.rank, float):
            return max(1, round(self.rank * least))
        if self.rank is not None:
            return min(self.rank, least)
        squares = torch.linalg.svdvals(layer.weight.detach()).square().cumsum(0)
        return min(least, int((squares < self.energy * squares[-1]).sum()) + 1)
