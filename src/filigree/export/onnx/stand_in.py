"""A module that stands for a layer while it is exported is asked for the layer's attributes: `.weight.dtype`, sizes."""

from __future__ import annotations

from typing import Any

from torch import nn

from filigree.nn.drop_in import recast
from filigree.nn.torch_attributes import ReadsAttributes


class StandIn(ReadsAttributes):
    """It keeps each attribute that it was asked for: a weight that is computed at each reading cannot be traced."""

    _stands_for: list[nn.Module]  # in a list, so that it is no submodule

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if name not in self._parameters and name not in self._buffers and name not in self._modules:
            self.__dict__[name] = value
        return value

    def attributes_from(self, name: str) -> nn.Module | None:
        return self._stands_for[0]


class _Called(nn.Module):
    """It calls a layer that is in the file as it is: its attributes are read once, as of all others."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)


def standing_for(layer: nn.Module, plain: nn.Module) -> nn.Module:
    """Return `plain` (which may be the layer itself) with the attributes of `layer` where it has none of that name."""
    plain = _Called(layer).eval() if plain is layer else plain
    kind = type(plain)
    stand_in: nn.Module = recast(type(kind.__name__, (StandIn, kind), {"__module__": kind.__module__}), plain)
    stand_in.__dict__["_stands_for"] = [layer]
    return stand_in
