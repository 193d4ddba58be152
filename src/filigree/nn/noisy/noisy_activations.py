"""Activations that saturate hard, with noise where they do (Moczulski 2019, 4.3)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Exponential, HalfNormal, Laplace, Normal, Uniform

from filigree.nn.capabilities import Capabilities
from filigree.nn.noisy.noisy_onnx import PlainNoise
from filigree.ops.c_steps import NoisyExpectation, clamp, floats, refuse, relu
from filigree.ops.noise import (
    HALF_NORMAL_MEAN,
    KINDS,
    Noise,
    draw_seed,
    expected_input_noise,
    noisy,
    noisy_reference,
    runs_kernels,
)

Kind = Literal["NAN", "NAH", "NANI", "NANIL", "NANIS"]

NoiseName = Literal["normal", "half-normal", "exponential", "uniform", "laplace"]

# distributions of variance 1 (of the underlying one where it is one-sided)
DISTRIBUTIONS: dict[str, Callable[[], Distribution]] = {
    "half-normal": lambda: HalfNormal(1.0), "exponential": lambda: Exponential(1.0),
    "uniform": lambda: Uniform(-math.sqrt(3), math.sqrt(3)), "laplace": lambda: Laplace(0.0, math.sqrt(0.5)),
}  # fmt: skip


def of_units(values: Tensor, x: Tensor, dim: int) -> Tensor:
    """Values for each unit, or one for all, reshaped to broadcast against x with its units along `dim`."""
    if values.numel() == 1:
        return values.to(x).reshape(())
    return values.to(x).view(-1, *[1] * (x.dim() - 1 - dim % x.dim()))


class WithNoise(Capabilities, nn.Module):
    """Base of noisy activations and noisy gates, which holds the noise and the parameter p.

    Attributes:
        c: the scale of 4.10; annealing sets it, and it is part of the `state_dict`.
        p: a parameter that is learned, or a buffer.
    """

    p: Tensor

    def __init__(
        self, kind: Kind, alpha: float, c: float, sigma: float, p: float | None, shape: tuple[int, ...], learn_p: bool,
        noise: str | Distribution, exact: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        name = type(self).__name__
        if kind not in KINDS:
            raise ValueError(f"{name}: kind must be one of {', '.join(KINDS)}. Got {kind!r}.")
        if not alpha > 0:
            raise ValueError(f"{name}: alpha must be above 0. Got {alpha}.")
        if not (0 <= c < math.inf and 0 <= sigma < math.inf):
            raise ValueError(f"{name}: c and sigma must be finite and at least 0. Got {c} and {sigma}.")
        if p is not None and not math.isfinite(p):
            raise ValueError(f"{name}: p must be finite. Got {p}.")
        if min(shape) < 1:
            raise ValueError(f"{name}: at least one unit is needed. Got {min(shape)}.")
        if isinstance(noise, str) and noise not in ("normal", *DISTRIBUTIONS):
            names = ", ".join(("normal", *DISTRIBUTIONS))
            raise ValueError(f"{name}: noise must be one of {names}, or a distribution with a mean. Got {noise!r}.")
        if not isinstance(noise, str | Distribution):
            raise ValueError(f"{name}: noise must be a name or a torch.distributions.Distribution. Got {noise!r}.")
        if isinstance(noise, Distribution) and (shapes := (*noise.batch_shape, *noise.event_shape)):
            raise ValueError(f"{name}: noise must be one distribution of numbers. Got one of shape {shapes}.")
        if isinstance(noise, Normal) and noise.loc == 0 and noise.scale == 1:
            noise = "normal"
        if exact and noise != "normal":
            raise ValueError(f"{name}: the exact expectation is known for normal noise only. Got {noise}.")
        self.kind, self.alpha, self.c, self.sigma = kind, float(alpha), float(c), float(sigma)
        self.noise, self.exact, self.learn_p = noise, exact, learn_p
        start = torch.empty(shape).uniform_(-1, 1) if p is None else torch.full(shape, float(p))
        if learn_p and kind not in ("NANI", "NANIS"):  # these kinds have no p
            self.p = nn.Parameter(start)
        else:
            self.register_buffer("p", start)
        if self._distribution is not None and not math.isfinite(self.mean):
            raise ValueError(f"{name}: the noise has no mean, so its expectation is not known. Got {noise}.")

    @property
    def _distribution(self) -> Distribution | None:
        if self.noise == "normal":
            return None
        return DISTRIBUTIONS[self.noise]() if isinstance(self.noise, str) else self.noise

    @property
    def mean(self) -> float:
        """E epsilon of 4.17: sqrt(2 / pi) of NAH's half-normal noise, 0 of normal noise."""
        if (distribution := self._distribution) is not None:
            return float(distribution.mean)
        return HALF_NORMAL_MEAN if self.kind == "NAH" else 0.0

    @property
    def numbers(self) -> Noise:
        own = Noise(self.kind, self.alpha, self.c, self.sigma)
        # a distribution is that of epsilon itself, not of a xi whose size is taken
        return own if self.noise == "normal" or self.kind != "NAH" else dataclasses.replace(own, kind="NAN")

    @property
    def draws(self) -> bool:
        """Whether random numbers are drawn: in training, unless their scale is 0."""
        scale = self.sigma if self.kind in ("NANI", "NANIS") else self.c
        return self.training and scale > 0

    def sample(self, like: Tensor) -> Tensor:
        """xi (or epsilon), drawn by torch, in the shape of `like`."""
        distribution = self._distribution
        if distribution is None:
            return torch.randn_like(like)
        return distribution.sample(like.shape).to(like)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.c, self.sigma], dtype=torch.float64)

    macs = 0  # of what it does to each number nothing is counted

    def label(self) -> str:
        return f"{type(self).__name__}({self.kind})"

    def set_extra_state(self, state: Tensor) -> None:
        self.c, self.sigma = (float(number) for number in state)

    def extra_repr(self) -> str:
        scale = f"sigma={self.sigma:g}" if self.kind in ("NANI", "NANIS") else f"alpha={self.alpha:g}, c={self.c:g}"
        p = "" if self.kind in ("NANI", "NANIS") else f", p: {tuple(self.p.shape)}{'' if self.learn_p else ' fixed'}"
        return f"{self.kind}, {scale}{p}"


class _NoisyActivation(WithNoise):
    _tanh: bool

    def __init__(
        self, kind: Kind = "NAH", alpha: float = 0.9, c: float = 0.5, sigma: float = 0.05, units: int = 1,
        dim: int = -1, p: float | None = None, learn_p: bool = True, noise: str | Distribution = "normal",
        exact: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(kind, alpha, c, sigma, p, (units,), learn_p, noise, exact)
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        x, p = input, self.p
        units = p.numel()
        if units > 1 and (x.dim() < (-self.dim if self.dim < 0 else self.dim + 1) or x.shape[self.dim] != units):
            raise ValueError(
                f"{type(self).__name__}: expected {units} units in dimension {self.dim}. Got {tuple(x.shape)}. "
                "With p='layer' any shape will do."
            )
        native = runs_kernels(x) and p.dtype == x.dtype and p.device == x.device
        if self.draws:
            if native and self.noise == "normal":
                return noisy(x, p, self.numbers, self._tanh, draw_seed(), self.dim)
            return noisy_reference(x, self._spread(x), self.sample(x), self.numbers, self._tanh)
        if self.exact and not self.training and self.kind in ("NANI", "NANIL", "NANIS"):
            return expected_input_noise(x, self._spread(x), self.numbers, self._tanh)
        mean = self.mean if self.kind in ("NAN", "NAH") else 0.0
        if native:
            return noisy(x, p, self.numbers, self._tanh, mean, self.dim)
        return noisy_reference(x, self._spread(x), mean, self.numbers, self._tanh)

    def _spread(self, x: Tensor) -> Tensor:
        """p broadcast against x."""
        return of_units(self.p, x, self.dim)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", dim={self.dim}" if self.dim != -1 else "")

    def onnx_form(self) -> nn.Module:
        return PlainNoise(self)

    def c_form(self, name: str) -> list[Any]:
        at_input = self.kind in ("NANI", "NANIL", "NANIS")
        if self.exact and at_input:
            raise refuse(name, "has an exact expectation of noise at its input, which cannot be written as C")
        if at_input and self._tanh:
            return [clamp(name, "clamp", "v", -1.0, 1.0)]
        if at_input:
            return [clamp(name, "hard_sigmoid_of_4", "(0.25f * v + 0.5f)", 0.0, 1.0)]
        scale = math.copysign(self.c * self.mean, 1 if self.alpha <= 1 else -1)
        return [NoisyExpectation(name, self._tanh, floats(self.p), self.dim, self.alpha, scale)]


_ARGUMENTS = """

    Args:
        kind: where the noise is, with u(x) the line through 0, Delta = h - u, sigma(x) = c (sigmoid(p Delta) - 1/2)^2
            (4.10), d(x) = -sgn(x) sgn(1 - alpha):

            - "NAN", "NAH": at the output, `alpha h(x) + (1 - alpha) u(x) + d(x) sigma(x) epsilon` (4.15), epsilon
              normal or half-normal. In eval mode its expectation, 4.17.
            - "NANI": at the input, `h(x + sigma xi)` (4.18); "NANIL": `h(x + sigma(x) xi)`; "NANIS": `h(x + sigma xi)`
              where x is saturated (4.19). In eval mode h(x), or with `exact` the expectation.
        alpha: above 0; may be above 1 (the public code of the authors uses 1.05 to 1.15).
        c: at least 0: of NAN, NAH and NANIL. sigma: of NANI and NANIS.
        units, dim: p has one number for each unit along `dim`, or one for all (`units=1`).
        p: its first value; by default drawn from U[-1, 1]. learn_p: train it, or keep it fixed (4.3.7).
        noise: "normal", "uniform", "laplace" (all of variance 1), "half-normal", "exponential", or a
            `torch.distributions.Distribution` with a mean: of epsilon, of xi where it is at the input.
        exact: the expectation of normal noise at the input in place of h(x), in eval mode.

    Shape: any, to the same. Noise comes from torch's global generator. One kernel each way on the CPU; it can be
    differentiated once.

    Raises:
        ValueError: an argument out of range, by name.
    """


class NoisyHardTanh(_NoisyActivation):
    __doc__ = (
        "The noisy version of h(x) = max(min(x, 1), -1) (Moczulski 2019, 4.3). Without noise (alpha = 1, c = 0) it is "
        "`nn.Hardtanh()`." + _ARGUMENTS
    )
    _tanh = True


class NoisyHardSigmoid(_NoisyActivation):
    __doc__ = (
        "The noisy version of h(x) = max(min(x / 4 + 1/2, 1), 0) (Moczulski 2019, 4.3). "
        "Without noise (alpha = 1, c = 0) it is h; torch's `nn.Hardsigmoid` has slope 1/6." + _ARGUMENTS
    )
    _tanh = False


class NoisyReLU(Capabilities, nn.Module):
    """A rectifier with noise before it: `max(0, x + sigma xi)`, xi normal; in eval mode `max(0, x)`.

    Args:
        sigma: a number (Bengio et al. 2013), or "input": sqrt(sigmoid(x)), taken as constant in the backward pass (Nair
            and Hinton 2010).

    Shape: any, to the same.
    """

    sigma: float | Literal["input"]
    inplace = False

    def __init__(self, sigma: float | Literal["input"] = "input") -> None:
        super().__init__()
        if sigma != "input" and (isinstance(sigma, str) or not sigma >= 0):
            raise ValueError(f"NoisyReLU: sigma must be at least 0, or 'input'. Got {sigma!r}.")
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.sigma == 0:
            return x.relu()
        scale: Any = x.detach().sigmoid().sqrt() if self.sigma == "input" else self.sigma
        return (x + scale * torch.randn_like(x)).relu()

    def label(self) -> str:
        return f"NoisyReLU({self.sigma})"

    def get_extra_state(self) -> Tensor:
        return torch.tensor(-1.0 if self.sigma == "input" else self.sigma, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.sigma = "input" if state < 0 else float(state)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma!r}"

    def c_form(self, name: str) -> list[Any]:
        return [relu(name)]
