"""What a module is called with: tensors first, then plain values that are the same at each call."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

_PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Fixed:
    """The plain values after a module's tensors, by position and by name."""

    args: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)

    def equals(self, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
        """Whether a call gives the same ones."""
        if not args and not named and not self.args and not self.named:
            return True
        if len(args) != len(self.args) or named.keys() != self.named.keys():
            return False
        return all(map(_same, args, self.args)) and all(_same(named[key], self.named[key]) for key in named)


NOTHING = Fixed()


def taken_apart(args: Sequence[Any], named: Mapping[str, Any]) -> tuple[list[Tensor], Fixed] | None:
    """The tensors of a call and what follows them; None: there are none, or others that are no plain values."""
    tensors = list(itertools.takewhile(lambda each: isinstance(each, Tensor), args))
    rest = tuple(args[len(tensors) :])
    if not tensors or not all(tensor.dim() for tensor in tensors):
        return None
    plain = all(isinstance(each, _PLAIN) for each in (*rest, *named.values()))
    return (tensors, Fixed(rest, dict(named))) if plain else None


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)
