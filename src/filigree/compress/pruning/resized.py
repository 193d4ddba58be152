"""The config `Resized`: layers of other sizes, how `fg.load` rebuilds a pruned network."""

from __future__ import annotations

from typing import Self

from torch import nn

from filigree.config import config
from filigree.convert import Change, Conversion
from filigree.nn.resizing import resize_module_, sizes_of
from filigree.summary import Summary


@config
class Resized(Conversion):
    """Layers with these sizes and empty parameters, to be filled by `load_state_dict`.

    Args:
        sizes: of each module: outputs, inputs, whether it has a bias (and groups) of a linear layer or a convolution;
            features of a batch norm.
    """

    sizes: dict[str, list[int]]

    @classmethod
    def examples(cls) -> dict[str, Self]:
        return {}  # how loading rebuilds what was pruned

    def accepts(self, module: nn.Module) -> bool:
        return sizes_of(module) is not None

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        changes = []
        for name in names:
            layer = model.get_submodule(name)
            before = Summary.of(layer)
            resize_module_(layer, self.sizes[name])
            changes.append(Change.of(name, before, layer))
        return changes
