"""Activations that noise makes linear (Moczulski 2019, 4.4, Algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.nn.capabilities import Capabilities
from filigree.nn.noisy.noisy_activations import of_units


@dataclass(frozen=True)
class Function:
    """An activation: `value(x)`, what it is at 0, and the slope of its line there (of ReLU's: 1)."""

    value: Callable[[Tensor], Tensor]
    at_zero: float
    slope: float


FUNCTIONS: dict[type[nn.Module], Function] = {
    nn.Sigmoid: Function(torch.sigmoid, 0.5, 0.25), nn.Tanh: Function(torch.tanh, 0.0, 1.0),
    nn.Hardsigmoid: Function(F.hardsigmoid, 0.5, 1 / 6), nn.Hardtanh: Function(F.hardtanh, 0.0, 1.0),
    nn.ReLU: Function(torch.relu, 0.0, 1.0),
}  # fmt: skip
HARD_SIGMOID = Function(lambda x: (0.25 * x + 0.5).clamp(0.0, 1.0), 0.5, 0.25)  # of 4.4: the gates of LSTMs and GRUs


def mollify(x: Tensor, function: Function, level: float, a: Tensor | float, xi: Tensor | None) -> Tensor:
    """psi of 4.24 for a level `c p`: `sgn(u) min(|u|, |f + sgn(u) s|)`, f shifted to be 0 at 0, u = slope x.

    `s = level (sigmoid(a (u - f)) - 1/2)^2 |xi|` (4.25 and Algorithm 2). Since u lies beyond f on either side of 0, psi
    is `f + d` with d = u - f clipped to [-s, s].

    Args:
        a: broadcast against x. xi: normal noise; None: the expectation, with K = level (...)^2 and m = |d|:
            `f + sgn(d) (K sqrt(2 / pi) (1 - exp(-m^2 / 2 K^2)) + m erfc(m / (K sqrt 2)))`.
    """
    if xi is None and level and x.dtype in (torch.float16, torch.bfloat16):
        return mollify(x.float(), function, level, a, None).to(x.dtype)
    f = function.value(x)
    f = f - function.at_zero if function.at_zero else f
    if level == 0:
        return f
    d = (function.slope * x if function.slope != 1 else x) - f
    squared = (d * (0.5 * a)).tanh().square()  # 4 (sigmoid(a d) - 1/2)^2
    if xi is not None:
        s = squared * (0.25 * level * xi.abs())
        return f + d.clamp(-s, s)
    m, scale = d.abs(), 0.25 * level * squared
    ratio = m / torch.maximum(scale, m / 30).clamp(min=1e-12)  # from 30 on all is 0 or 1, and slopes stay finite
    mean = scale * math.sqrt(2 / math.pi) * -torch.expm1(-0.5 * ratio.square()) + m * torch.erfc(ratio / math.sqrt(2))
    return f + d.sign() * mean


class MollifiedActivation(Capabilities, nn.Module):
    """psi in place of an activation; at level p = 0 the activation, shifted to be 0 at 0 unless `shift_back`.

    Args:
        activation: an `nn.Sigmoid`, `nn.Tanh`, `nn.Hardsigmoid`, `nn.Hardtanh()` or `nn.ReLU`.
        c: the scale of the noise. a: of Algorithm 2: a range, from which a number for each of `units` along `dim` is
            drawn, or one number for all; a buffer, not trained.
        shift_back: add f's value at 0 to the result.

    Attributes:
        p: the level, in [0, 1]; in eval mode there is no noise: with `expected` the expectation at this
            level, otherwise the activation.

    Shape: any, to the same.
    """

    a: Tensor

    def __init__(
        self, activation: nn.Module, c: float = 1.0, a: tuple[float, float] | float = (-2.0, 2.0), units: int = 1,
        dim: int = -1, shift_back: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name, self.function = type(activation).__name__, FUNCTIONS[type(activation)]
        self.c, self.dim, self.shift_back = c, dim, shift_back
        self.p, self.expected = 0.0, False
        start = torch.empty(units).uniform_(*a) if isinstance(a, tuple) else torch.full((units,), float(a))
        self.register_buffer("a", start)

    def forward(self, x: Tensor) -> Tensor:
        level = self.c * (self.p if self.training or self.expected else 0.0)
        a = of_units(self.a, x, self.dim)
        y = mollify(x, self.function, level, a, torch.randn_like(x) if self.training and level else None)
        return y + self.function.at_zero if self.shift_back and self.function.at_zero else y

    def extra_repr(self) -> str:
        back = ", shift_back=True" if self.shift_back else ""
        return f"{self.name}, c={self.c:g}, p={self.p:.3g}, units={self.a.numel()}{back}"
