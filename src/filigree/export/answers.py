"""Find out whether a layer answers by itself what export asks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from filigree.nn.capabilities import Capabilities


def answers(module: nn.Module, *methods: str, eval_only: bool = True) -> bool:
    """Tell whether a layer's class defines one of these methods of `Capabilities`, and for the forward that it has.

    What a class inherits describes the forward that it inherits. filigree's own subclasses differ from their bases in
    training alone: with `eval_only` their inherited answers count.
    """
    if not isinstance(module, Capabilities):
        return False
    for kind in type(module).__mro__:
        if kind is not Capabilities and any(method in vars(kind) for method in methods):
            return True
        if "forward" in vars(kind) and not (eval_only and is_from(kind, ("filigree",))):
            return False
    return False


def is_from(kind: type, packages: Sequence[str]) -> bool:
    """Tell whether one of these packages defines the class."""
    return kind.__module__.partition(".")[0] in packages
