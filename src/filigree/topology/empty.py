"""No connections: the shell of a layer that a file fills."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from filigree.config import config
from filigree.topology.topology import Size, Topology


@config
class Empty(Topology):
    """Layers without connections, to be filled by `load_state_dict`, which brings the connections with the weights.

    How `fg.load` rebuilds sparse layers whose connections did not come from a topology (those that pruning left), or
    came from one that would draw others for a part of the network.
    """

    def draw(self, sizes: Sequence[Size], generator: torch.Generator) -> list[Tensor | None]:
        return [torch.empty(0, dtype=torch.int64) for _ in sizes]
