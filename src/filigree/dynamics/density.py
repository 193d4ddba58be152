"""How the density of a network changes while it trains, and how many connections each of its layers has of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor

from filigree.config import Config, config
from filigree.topology import ErdosRenyiKernel, Size
from filigree.topology.shards import part_of

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Density = Annotated[float, pydantic.Field(gt=0, le=1)]
Allocation = Literal["layer", "global", "erk"]


class DensitySchedule(Config):
    """Base of density schedules: from the density that there is at the beginning to `final`, up or down.

    Between `begin` and `end`, shares of the run, subclasses say by `done(t)` which part of the way is behind after the
    part t of the time; at 0 and 1 it is 0 and 1.

    Args:
        final: the density at the end, in (0, 1]. begin, end: when it changes, as shares of the run.
    """

    final: float
    begin: float
    end: float

    def __post_init__(self) -> None:
        if self.begin >= self.end:
            name = type(self).__name__
            raise ValueError(f"{name}: begin must be before end. Got begin={self.begin}, end={self.end}.")

    @classmethod
    def examples(cls) -> dict[str, Any]:
        return {cls.__name__: cls(0.1)}  # type: ignore[call-arg]

    def done(self, t: float) -> float:
        raise NotImplementedError

    def density(self, initial: float, share: float) -> float:
        """The density when the `share` of the run is over, in [0, 1], that began with the density `initial`."""
        t = min(1.0, max(0.0, (share - self.begin) / (self.end - self.begin)))
        return initial + (self.final - initial) * self.done(t) if t < 1 else self.final


@config
class CubicDensity(DensitySchedule):
    """d_t = d_f + (d_i - d_f) (1 - t)^3: gradual pruning, fast at first (Zhu and Gupta 2017, eq. 1)."""

    final: Density
    begin: Share = 0.0
    end: Share = 0.75

    def done(self, t: float) -> float:
        return 1 - (1 - t) ** 3


@config
class LinearDensity(DensitySchedule):
    """d_t = d_i + (d_f - d_i) t, by default over the first half of the run (Gao et al. 2025, A.2)."""

    final: Density
    begin: Share = 0.0
    end: Share = 0.5

    def done(self, t: float) -> float:
        return t


@config
class SigmoidDensity(DensitySchedule):
    """Slow, fast and slow again (CHTss; Zhang et al. 2025, 3.3): d_t = d_i + (d_f - d_i) s(t), with
    s(t) = 1/2 + (g(t) - 1/2) / (g(1) - g(0)) and g(t) = 1 / (1 + exp(-k (2 t - 1)))."""

    final: Density
    begin: Share = 0.0
    end: Share = 0.75
    k: Annotated[float, pydantic.Field(gt=0)] = 6.0

    def done(self, t: float) -> float:
        first, last, now = (1 / (1 + math.exp(-self.k * (2 * x - 1))) for x in (0.0, 1.0, t))
        return 0.5 + (now - 0.5) / (last - first)


def as_density(given: Any) -> DensitySchedule:
    """A schedule from a schedule or a number, which is where a `CubicDensity` ends."""
    if isinstance(given, DensitySchedule):
        return given
    if isinstance(given, int | float) and not isinstance(given, bool):
        return CubicDensity(given)
    raise TypeError(f"Evolution: density must be a density schedule or a number. Got {given!r}.")


def connections_at(
    density: float, layers: Mapping[str, Any], first: Mapping[str, int], by: Allocation
) -> dict[str, int]:
    """How many connections each layer is to have if all together have this density; at least one each.

    Args:
        layers: sparse layers by name. first: their connections at the beginning, whose proportions "layer" keeps.
        by: "layer", "global" or "erk"; see `fg.Evolution`.
    """
    possible = {name: possible_connections(layer) for name, layer in layers.items()}
    total = density * sum(possible.values())
    if by == "erk":
        densities = ErdosRenyiKernel(min(1.0, density)).densities([_size(layer) for layer in layers.values()])
        wanted = {name: share * possible[name] for name, share in zip(layers, densities, strict=True)}
    else:
        wanted = proportional(total, {name: first[name] for name in layers}, possible)
        weights = {name: layer.weights() for name, layer in layers.items()} if by == "global" else {}
        if round(total) < sum(map(len, weights.values())):
            wanted = dict(largest_of_all(round(total), weights))
    return {name: max(1, min(possible[name], round(count))) for name, count in wanted.items()}


def possible_connections(layer: Any) -> int:
    """How many connections a layer could have, its rows in other processes included."""
    return part_of(layer).total(layer.out_features) * layer.in_features


def proportional(total: float, first: Mapping[str, int], possible: Mapping[str, int]) -> dict[str, float]:
    """Divide connections in the proportions of `first`; what a full layer cannot take goes to the others."""
    full: set[str] = set()
    while True:
        rest = total - sum(possible[name] for name in full)
        others = sum(count for name, count in first.items() if name not in full)
        scale = rest / others if others else 0.0
        over = {name for name, count in first.items() if name not in full and count * scale > possible[name]}
        if not over:
            return {name: possible[name] if name in full else count * scale for name, count in first.items()}
        full |= over


def largest_of_all(total: int, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """How many of the `total` largest weights of all layers together lie in each."""
    sizes = [of_layer.float().abs() for of_layer in weights.values()]
    order = torch.cat(sizes).sort(stable=True, descending=True).indices[:total]
    ends = torch.tensor([len(size) for size in sizes]).cumsum(0)
    counts = torch.bincount(torch.searchsorted(ends, order, right=True), minlength=len(sizes))
    return dict(zip(weights, counts.tolist(), strict=True))


def _size(layer: Any) -> Size:
    rows = part_of(layer).total(layer.out_features)
    return Size(rows, layer.in_features, tuple(getattr(layer, "kernel_size", ())))
