"""Activations that noise makes linear (Moczulski 2019, 4.4, Algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from filigree.nn.capabilities import Capabilities
from filigree.nn.noisy.noisy_activations import of_units
from filigree.ops.c_steps import ScaleShift, refuse


@dataclass(frozen=True)
class ActivationFunction:
    """An activation: `value(x)`, its value at 0, and the slope of its linear approximation there (for ReLU: 1)."""

    value: Callable[[Tensor], Tensor]
    at_zero: float
    slope: float


FUNCTIONS: dict[type[nn.Module], ActivationFunction] = {
    nn.Sigmoid: ActivationFunction(torch.sigmoid, 0.5, 0.25),
    nn.Tanh: ActivationFunction(torch.tanh, 0.0, 1.0),
    nn.Hardsigmoid: ActivationFunction(F.hardsigmoid, 0.5, 1 / 6),
    nn.Hardtanh: ActivationFunction(F.hardtanh, 0.0, 1.0),
    nn.ReLU: ActivationFunction(torch.relu, 0.0, 1.0),
}
# Moczulski 2019, 4.4: the gates of LSTMs and GRUs
HARD_SIGMOID = ActivationFunction(lambda x: (0.25 * x + 0.5).clamp(0.0, 1.0), 0.5, 0.25)


def mollify(x: Tensor, function: ActivationFunction, level: float, a: Tensor | float, xi: Tensor | None) -> Tensor:
    """psi of Moczulski 2019, eq. 4.24, for a level `c p`: `sgn(u) min(|u|, |f + sgn(u) s|)`, with u = slope x.

    f is shifted to be 0 at 0.

    `s = level (sigmoid(a (u - f)) - 1/2)^2 |xi|` (eq. 4.25 and Algorithm 2). Since u lies beyond f on either side of 0,
    psi is `f + d` with d = u - f clipped to [-s, s].

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
    # from a ratio of 30 on exp and erfc are 0 or 1, and slopes stay finite
    ratio = m / torch.maximum(scale, m / 30).clamp(min=1e-12)
    mean = scale * math.sqrt(2 / math.pi) * -torch.expm1(-0.5 * ratio.square()) + m * torch.erfc(ratio / math.sqrt(2))
    return f + d.sign() * mean


class MollifiedActivation(Capabilities, nn.Module):
    """Computes psi in place of an activation; at level p = 0 it is the activation, shifted to be 0 at 0.

    Args:
        activation: an `nn.Sigmoid`, `nn.Tanh`, `nn.Hardsigmoid`, `nn.Hardtanh()` or `nn.ReLU`.
        c: the scale of the noise. a: of Algorithm 2: a range, from which a number for each of `units` along `dim` is
            drawn, or one number for all; it is a buffer and not trained.
        shift_back: add f's value at 0 to the result, so that it is the activation itself at p = 0.

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

    def c_form(self, name: str) -> list[Any]:
        if self.expected and self.p:
            raise refuse(name, f"is at level {self.p:.3g}, whose expectation cannot be written as C: anneal it to 0")
        activation = name, getattr(nn, self.name)()
        at_zero = 0.0 if self.shift_back else self.function.at_zero
        return [activation, ScaleShift(name, np.ones(1), np.full(1, -at_zero))] if at_zero else [activation]
