"""Attributes of the torch layer that a module stands for: owners read `.weight.dtype`, `.in_features` or `.p` of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

TORCH_ATTRIBUTES = (  # of linear layers and convolutions
    "in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
    "groups", "padding_mode", "transposed", "output_padding", "weight", "bias",
)  # fmt: skip


class ReadsAttributes:
    """Mixin, before `nn.Module`, of a module that is asked for attributes that it does not hold itself.

    Attributes:
        instead: of attributes, or of all whose names begin so, what an `AttributeError` says in a line: why there is
            none, and what to read instead.
    """

    instead: ClassVar[Mapping[str, str]] = {}

    def attributes_from(self, name: str) -> nn.Module | None:
        """The module whose attribute of this name is read where this one has none."""
        return None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name.startswith("_"):
                raise
            source = self.attributes_from(name)
            if source is not None and hasattr(source, name):
                return getattr(source, name)
            for start, reason in self.instead.items():
                if name.startswith(start):
                    raise AttributeError(f"{type(self).__name__} has no {name}: {reason}.") from None
            raise
