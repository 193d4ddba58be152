"""Residual blocks that are left out at random while training (Huang et al. 2016)."""

from __future__ import annotations

from typing import Annotated

import pydantic
from torch import nn

from filigree.config import config
from filigree.convert import Change, Conversion
from filigree.protocols import ResidualBlock
from filigree.summary import Summary


@config
class StochasticDepth(Conversion):
    """Give every residual block a chance to survive each batch, falling in a straight line with depth.

    Block l of L survives with `1 - l / L (1 - last)`; what does not survive is not computed, only its shortcut is. In
    eval mode a block's branch is times its chance. The baseline of `Mollified`, and combined with it by converting to
    both, this one first. A residual block is what has a `shortcut` and a `survival`, as `filigree.models.BasicBlock`
    does: see `filigree.protocols.ResidualBlock`.

    Args:
        last: the chance of the last block.
    """

    last: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.5

    def accepts(self, module: nn.Module) -> bool:
        return isinstance(module, ResidualBlock)

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        changes = []
        for number, name in enumerate(names, 1):
            block = model.get_submodule(name)
            assert isinstance(block, ResidualBlock)
            block.survival = 1 - number / len(names) * (1 - self.last)
            changes.append(Change.of(name, block, Summary.of(block)._replace(label=f"survives {block.survival:.2f}")))
        return changes
