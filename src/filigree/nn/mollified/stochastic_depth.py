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

    Block l of L survives a batch with probability `1 - l / L (1 - last)`; of a block that does not survive only the
    shortcut is computed. In eval mode a block's branch is multiplied by its probability. This is the baseline of
    `Mollified`; to combine them, convert to this one first. A residual block is a module with a `shortcut` and a
    `survival`, as `filigree.models.BasicBlock` is: see `filigree.protocols.ResidualBlock`.

    Args:
        last: the probability of the last block.
    """

    keeps_ties = True

    last: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.5

    def accepts(self, module: nn.Module) -> bool:
        return isinstance(module, ResidualBlock)

    def keeps_computed_weights(self, module: nn.Module) -> bool:
        return True

    def apply(self, model: nn.Module, names: list[str]) -> list[Change]:
        changes = []
        for number, name in enumerate(names, 1):
            block = model.get_submodule(name)
            assert isinstance(block, ResidualBlock)
            block.survival = 1 - number / len(names) * (1 - self.last)
            changes.append(Change.of(name, block, Summary.of(block)._replace(label=f"survives {block.survival:.2f}")))
        return changes
