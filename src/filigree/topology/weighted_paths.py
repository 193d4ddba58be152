"""Paths through a trained network: a Markov chain from the outputs back, by the magnitudes of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from filigree.ops.transforms import plain

Steps = Literal["jittered", "independent"]


def check_chain(layers: Sequence[Any], names: Sequence[str], caller: str) -> None:
    """Refuse layers that are not a chain: each must read the units that the one before makes (flattened or not)."""
    for before, after, name, next_name in zip(layers, layers[1:], names, names[1:], strict=False):
        outputs, inputs = _outputs(before), _inputs(after)
        if inputs % outputs:
            raise ValueError(
                f"{caller}: paths need a chain of layers: {next_name!r} reads {inputs} units, "
                f"{name!r} makes {outputs}. "
                "Name a chain with where=."
            )


def weighted_paths(layers: Sequence[Any], paths: int, how: Steps, generator: torch.Generator | None) -> list[Tensor]:
    """The distinct edges of `paths` paths, for each layer sorted flat indices `out * in_features + in`, int64.

    A path begins at an output unit, all equally often, and goes back along row i of a layer to input j with probability
    |w_ij| / sum_j |w_ij|; of a convolution i and j are channels, |w| the sum over the kernel, and an edge has all of
    it. A path that comes to a unit without weights ends there. O(paths log + weights) a layer.

    Args:
        how: "jittered": the paths through a unit take equidistant points of its distribution, with one random shift;
            "independent": a random number each.
    """
    last = _outputs(layers[-1])
    shift = torch.rand((), generator=generator, dtype=torch.float64)
    unit = ((torch.arange(paths, dtype=torch.float64) + shift) * (last / paths)).long().clamp_(max=last - 1)
    edges: list[Tensor] = []
    for number in range(len(layers) - 1, -1, -1):
        layer = layers[number]
        strengths = _strengths(layer)
        rows, cols = strengths.shape
        total = strengths.sum(1)
        unit = unit[total[unit] > 0]
        if how == "jittered":
            unit = unit.sort().values
            visits = torch.bincount(unit, minlength=rows)
            rank = torch.arange(len(unit)) - (visits.cumsum(0) - visits)[unit]
            xi = torch.rand(rows, generator=generator, dtype=torch.float64)
            point = (rank + xi[unit]) / visits[unit]
        else:
            point = torch.rand(len(unit), generator=generator, dtype=torch.float64)
        cumulative = strengths.cumsum(1) / total.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
        flat = (cumulative + torch.arange(rows)[:, None]).flatten()  # rows end to end, rising
        column = torch.searchsorted(flat, unit + point, right=True) - unit * cols
        most = (strengths > 0).long().mul_(torch.arange(1, cols + 1)).amax(1) - 1  # rounding cannot leave the row
        column = torch.minimum(column.clamp_(min=0), most[unit])
        taps = layer.weight.shape[1:].numel() // cols
        flat = (unit * cols + column).unique()
        edges.append((flat[:, None] * taps + torch.arange(taps)).flatten())
        groups = getattr(layer, "groups", 1)
        unit = column + (unit // (rows // groups)) * cols if groups > 1 else column
        if number:
            unit = unit // (_inputs(layer) // _outputs(layers[number - 1]))
    return edges[::-1]


def _strengths(layer: Any) -> Tensor:
    """|w| between the units of a layer, `(out, in / groups)`, float64."""
    weight = plain(layer.weight, "sampled paths").detach().abs().double()
    return weight if weight.dim() == 2 else weight.flatten(2).sum(2)


def _outputs(layer: Any) -> int:
    return layer.weight.shape[0]


def _inputs(layer: Any) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
