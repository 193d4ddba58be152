"""What a model of your own can offer, beyond being a torch module, so that filigree treats it as it should."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class ResidualBlock(Protocol):
    """A block that adds its input, or what `shortcut` makes of it, to what it computes, and that can be left out.

    Attributes:
        survival: the chance that the block computes more than its shortcut in a batch of training; 1 when made.
        shortcut: from the block's input to something of its output's shape.
    """

    survival: float
    shortcut: nn.Module

    def __call__(self, x: Any) -> Any: ...


@runtime_checkable
class CarriesState(Protocol):
    """A model that goes on from call to call where the last one ended, such as `filigree.models.language_model`.

    Attributes:
        carry: whether it does.
    """

    carry: bool

    def reset(self) -> None:
        """Forget the carried state."""
