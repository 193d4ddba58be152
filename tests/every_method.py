"""Every method, with options that make it another one, and how it is applied to all that it accepts."""

from __future__ import annotations

import torch
from torch import nn

import filigree as fg
from composition import AFTER, BEFORE
from filigree.convert import Report

MORE = {
    "FuseLinears": fg.FuseLinears(fg.Fastfood(), features=16),
    "StochasticDepth": fg.StochasticDepth(),
    "Mollified, projected": fg.Mollified(skip="project"),
    "DropConnect": fg.PartitionDropout(2, connect=True),
    "connections": fg.MagnitudePruning(keep=0.5, of="connections"),
    "correlation": fg.RandomPruning(keep=0.5, compensate="correlation", measure=False),
    "budget": fg.MagnitudePruning(keep=fg.Budget(macs=0.6), measure=False),
    "2:4 and 4 bits": fg.OneShot(pattern="2:4", bits=4),
    "from weights alone": fg.MonteCarlo(samples=1.0),
}
METHODS = BEFORE | AFTER | MORE
WITHOUT_DATA = {"from weights alone", "RoundToNearest", "PathSampling"}


def is_conversion(name: str) -> bool:
    return not isinstance(METHODS[name], fg.compress.Compression)


def apply(name: str, model: nn.Module, x: torch.Tensor | None) -> Report:
    """Convert or compress all that a method accepts, on these inputs where it takes some."""
    config = METHODS[name]
    if is_conversion(name):
        square = isinstance(config, fg.FuseLinears)
        return fg.convert_(model, config, lambda _, module: not square or module.in_features == module.out_features)
    return fg.compress_(model, config, None if name in WITHOUT_DATA else x)
