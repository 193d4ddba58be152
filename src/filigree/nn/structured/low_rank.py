"""Layers of low rank: the truncated singular value decomposition of a trained or an initial weight."""

from __future__ import annotations

from typing import Annotated, Any, Self

import pydantic
import torch
from torch import Tensor, nn

from filigree.config import config
from filigree.convert import Change, Conversion, replace_module
from filigree.nn.capabilities import Capabilities
from filigree.nn.dense_weight import DenseWeightAndBias
from filigree.nn.drop_in import dense_conv2d, dense_linear


class Factors(Capabilities, DenseWeightAndBias, nn.Module):
    """What layers of low rank share: `down`, then `up`."""

    down: Any
    up: Any
    calls_layers_only = True

    @classmethod
    def sized_like(cls, dense: Any, rank: int) -> Self:
        """A layer of a dense one's sizes and type, with initial weights; of its full rank, if that is less."""
        raise NotImplementedError

    @classmethod
    def like(cls, dense: Any, rank: int) -> Self:
        """The best approximation of a dense layer's weight, as a matrix, of this rank, or of its full one.

        Both factors hold the square roots of the singular values.
        """
        layer = cls.sized_like(dense, rank)
        if not dense.weight.is_meta:
            u, s, v = torch.linalg.svd(_matrix(dense), full_matrices=False)
            root = s[: layer.rank].sqrt()
            layer.write_(u[:, : layer.rank] * root, root[:, None] * v[: layer.rank], dense.bias)
        return layer

    @torch.no_grad()
    def write_(self, up: Tensor, down: Tensor, bias: Tensor | None) -> None:
        """Write factors `(out, rank)` and `(rank, in)` or `(rank, in kh kw)`, and the bias of a layer that has one."""
        self.down.weight.copy_(down.view_as(self.down.weight))
        self.up.weight.copy_(up.view_as(self.up.weight))
        if self.up.bias is not None and bias is not None:
            self.up.bias.copy_(bias)

    @property
    def rank(self) -> int:
        return int(self.up.weight.shape[1])

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(input))
        return y

    def label(self) -> str:
        return f"{type(self).__name__}(rank={self.rank})"

    def c_form(self, name: str) -> list[Any]:
        return [(f"{name}.down", self.down), (f"{name}.up", self.up)]


class LowRankLinear(Factors):
    """`y = x V^T U^T + b` with U `(out, rank)` and V `(rank, in)`: rank (in + out) weights in place of in x out.

    Dense equivalent: `dense()`.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        _check(rank)
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias)

    @property
    def in_features(self) -> int:
        return int(self.down.in_features)

    @property
    def out_features(self) -> int:
        return int(self.up.out_features)

    @classmethod
    def sized_like(cls, dense: Any, rank: int) -> Self:
        outputs, inputs = _sides(dense)
        layer = cls(inputs, outputs, min(rank, inputs, outputs), dense.bias is not None)
        return layer.to(dense.weight.device, dense.weight.dtype)

    @torch.no_grad()
    def dense(self) -> nn.Linear:
        """The equivalent `nn.Linear`."""
        return dense_linear(self.up.weight @ self.down.weight, _bias(self.down, self.up))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class LowRankConv2d(Factors):
    """A convolution of `rank` filters, and one of 1 x 1 that mixes what they give: `rank (in kh kw + out)` weights.

    It is the convolution by W = U V as a matrix `(out, in kh kw)`, U `(out, rank)` the weight of the second one and V
    `(rank, in kh kw)` that of the first, which has the stride, padding and dilation. Dense equivalent: `dense()`.

    Args:
        rank: the filters of the first one. The others are those of `nn.Conv2d`; there is one group.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, rank: int, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, bias: bool = True, padding_mode: Any = "zeros",
    ) -> None:  # fmt: skip
        super().__init__()
        _check(rank)
        self.down = nn.Conv2d(
            in_channels, rank, kernel_size, stride, padding, dilation, bias=False, padding_mode=padding_mode
        )
        self.up = nn.Conv2d(rank, out_channels, 1, bias=bias)
        for name in (
            "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "transposed", "output_padding",
        ):  # fmt: skip
            setattr(self, name, getattr(self.down, name))

    @property
    def in_channels(self) -> int:
        return int(self.down.in_channels)

    @property
    def out_channels(self) -> int:
        return int(self.up.out_channels)

    @classmethod
    def sized_like(cls, dense: Any, rank: int) -> Self:
        conv: nn.Conv2d = dense
        if conv.groups != 1:
            raise ValueError(f"LowRankConv2d: the convolution must have one group. Got {conv.groups}.")
        layer = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, min(rank, *_sides(conv)), conv.stride, conv.padding,
            conv.dilation, conv.bias is not None, conv.padding_mode,
        )  # fmt: skip
        return layer.to(conv.weight.device, conv.weight.dtype)

    @torch.no_grad()
    def dense(self) -> nn.Conv2d:
        """The equivalent `nn.Conv2d`."""
        down, up, bias = self.down, self.up, _bias(self.down, self.up)
        conv = nn.Conv2d(
            down.in_channels, up.out_channels, down.kernel_size, down.stride, down.padding, down.dilation,
            bias=bias is not None, padding_mode=down.padding_mode, device="meta",
        )  # fmt: skip
        return dense_conv2d(conv, up.weight.flatten(1) @ down.weight.flatten(1), bias)

    def extra_repr(self) -> str:
        return f"in_channels={self.in_channels}, out_channels={self.out_channels}, rank={self.rank}"


def _matrix(dense: Any) -> Tensor:
    """The weight as a matrix, in a type that can be decomposed."""
    weight = dense.weight.detach().flatten(1)
    return weight if weight.dtype == torch.float64 else weight.float()


def _check(rank: int) -> None:
    if rank < 1:
        raise ValueError(f"LowRank: rank must be at least 1. Got {rank}.")


def _bias(down: Any, up: Any) -> Tensor | None:
    """The bias of both together: after pruning the first one may have one, too."""
    if down.bias is None:
        return up.bias
    through = up.weight.flatten(1) @ down.bias
    return through if up.bias is None else up.bias + through


@config
class LowRank(Conversion):
    """Linear layers become products of two of low rank (Moczulski 2019, table 3.4: SVD-half and SVD-quarter).

    Convolutions in two dimensions and one group become one of fewer filters and one of 1 x 1, the weight taken as a
    matrix `(out, in kh kw)`.

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
        return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)

    def gains(self, module: nn.Module) -> bool:
        layer: Any = module
        return self.rank_of(layer) * sum(_sides(layer)) < layer.weight.numel()

    def choose(self, model: nn.Module, names: list[str]) -> list[tuple[Conversion, list[str], str]]:
        return [(LowRank(self.rank_of(model.get_submodule(name))), [name], "") for name in names]

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        changes = []
        for name in names:
            layer: Any = model.get_submodule(name)
            if not layer.weight.is_meta and not bool(layer.weight.isfinite().all()):
                raise ValueError(f"LowRank: the weights of {name!r} must be finite.")
            low_rank = kind_of(layer).like(layer, self.rank_of(layer))
            replace_module(model, name, low_rank)
            changes.append(Change.of(name, layer, low_rank, self.note(layer)))
        return changes

    def note(self, layer: nn.Module) -> str:
        return "" if self.gains(layer) else "larger than dense"

    def rank_of(self, layer: Any) -> int:
        """The rank that a layer gets."""
        least = min(_sides(layer))
        if isinstance(self.rank, float):
            return max(1, round(self.rank * least))
        if self.rank is not None:
            return min(self.rank, least)
        squares = torch.linalg.svdvals(_matrix(layer)).square().cumsum(0)
        return min(least, int((squares < self.energy * squares[-1]).sum()) + 1)


def kind_of(layer: nn.Module) -> Any:
    """The class of the low-rank layer in its place."""
    return LowRankConv2d if isinstance(layer, nn.Conv2d) else LowRankLinear


def _sides(layer: Any) -> tuple[int, int]:
    """The sides of a layer's weight as a matrix: outputs, and inputs at each tap."""
    return len(layer.weight), layer.weight[0].numel()
