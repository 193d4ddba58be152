"""Kinds of dropout that sparsified backpropagation is compared with."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from filigree.config import check_choice, config
from filigree.convert import Change, Conversion, width_before
from filigree.nn.capabilities import Capabilities
from filigree.nn.dropout.replace_dropout import replace_dropouts


class GaussianNoise(Capabilities, nn.Dropout):
    """Gaussian dropout (Srivastava et al. 2014, section 10): x (1 + e), e from N(0, p / (1 - p)), one e an element.

    The mean and the variance are those of dropout with probability `p`. The identity in eval mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * torch.randn_like(x).mul_((self.p / (1 - self.p)) ** 0.5).add_(1)


class StrengthDropout(Capabilities, nn.Module):
    """Guided dropout (Keshari et al. 2019): units have a learned strength, and strong ones are dropped.

    `y = x t m / (1 - p)` with t the strengths `(units,)`, 1 at first, and m zero at the dropped units: the share p of
    largest |t| ("top"), or a share p at random of the stronger half, at most all of it ("active"). In eval mode `x t`.

    Shape: `(..., units)` to the same. `ValueError`: the input has another number of units.
    """

    inplace = False

    def __init__(self, units: int, p: float = 0.5, region: Literal["top", "active"] = "active") -> None:
        super().__init__()
        check_choice("StrengthDropout", "region", region, ("top", "active"))
        self.p, self.region = p, region
        self.strength = nn.Parameter(torch.ones(units))

    def forward(self, x: Tensor) -> Tensor:
        units = self.strength.numel()
        if not x.dim() or x.shape[-1] != units:
            raise ValueError(
                f"StrengthDropout: the input's last side must be its {units} units. Got {tuple(x.shape)}. "
                "GuidedDropout takes the layer registered before a dropout for the one that it follows: use where=."
            )
        if not self.training or self.p == 0:
            return x * self.strength.to(x.dtype)
        count = round(self.p * units)
        order = self.strength.detach().abs().sort(descending=True, stable=True).indices
        if self.region == "active":
            active = order[: max(count, units // 2)]
            order = active[torch.randperm(len(active), device=x.device)]
        mask = torch.ones_like(self.strength).index_fill(0, order[:count], 0)
        return x * (self.strength * mask / (1 - self.p)).to(x.dtype)

    @property
    def macs(self) -> int:
        return self.strength.numel()

    def label(self) -> str:
        return f"StrengthDropout({self.region})"

    def extra_repr(self) -> str:
        return f"{self.strength.numel()}, p={self.p}, region={self.region!r}"


@config
class GaussianDropout(Conversion):
    """Replace every `nn.Dropout` by multiplicative Gaussian noise of the same mean and variance."""

    keeps_ties = True

    def accepts(self, module: nn.Module) -> bool:
        return type(module) is nn.Dropout and module.p < 1

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        return replace_dropouts(model, names, "GaussianDropout", lambda name, dropout: GaussianNoise(_p(dropout)))


@config
class GuidedDropout(Conversion):
    """Replace every `nn.Dropout` after a linear layer by `filigree.nn.StrengthDropout` of the same probability."""

    keeps_ties = True

    region: Literal["top", "active"] = "active"

    def accepts(self, module: nn.Module) -> bool:
        return type(module) is nn.Dropout and module.p < 1

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        def guided(name: str, dropout: nn.Module) -> nn.Module:
            units, side, layer = width_before(model, name, "GuidedDropout")
            if side != -1:
                raise ValueError(f"GuidedDropout: {name!r} must follow a linear layer, not a convolution.")
            new = StrengthDropout(units, _p(dropout), self.region)
            like = next((t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()), new.strength)
            return new.to(like.dtype) if like.is_meta else new.to(like)

        return replace_dropouts(model, names, "GuidedDropout", guided)


def _p(module: Any) -> float:
    return float(module.p)
