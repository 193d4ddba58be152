"""Every connection: sparse layers that begin as dense ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from filigree.config import config
from filigree.topology.topology import Size, Topology


@config
class Full(Topology):
    """Sparse layers with every connection, which `fg.AnnealedTopK` and `fg.Evolution(density=)` take connections from.

    As long as a linear layer has all of them it computes as `nn.Linear` does. Its indices take 16 bytes a weight,
    beside 4 of the weight itself. (With `ErdosRenyi(density=1.0)` layers stay dense, and nothing rewires them.)
    """

    def draw(self, sizes: Sequence[Size], generator: torch.Generator) -> list[Tensor | None]:
        return [torch.arange(size.numel) for size in sizes]
