"""What a model of your own can offer, beyond being a torch module, so that filigree knows how to treat it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class ResidualBlock(Protocol):
    """A block that adds its input, after `shortcut`, to what it computes, and that can be left out.

    Attributes:
        survival: the probability that the block computes more than its shortcut in a batch of training; 1 at first.
        shortcut: a module from the block's input to the shape of its output.
    """

    survival: float
    shortcut: nn.Module

    def __call__(self, x: Any) -> Any: ...


@runtime_checkable
class CarriesState(Protocol):
    """A model that continues at each call where the last one ended, such as `filigree.models.language_model`.

    Attributes:
        carry: whether its state is carried from call to call.
    """

    carry: bool

    def reset(self) -> None:
        """Forget the carried state."""
