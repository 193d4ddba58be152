"""What a rewiring did to one layer: for averages and whatever else goes by the position of a weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from filigree.topology.flat_indices import moved


@dataclass(frozen=True, eq=False)
class Rewiring:
    """One layer's connections before and after a rewiring; see `Evolution.on_rewire`.

    Attributes:
        name: of the layer in the model. layer: the layer itself, as it is now.
        before: the sorted flat indices `out * in_features + in` of the old connections, `(nnz,)` int64.
        after: those of the new ones. source: for each new connection its position in `before`, or -1 if it was grown.
    """

    name: str
    layer: Any
    before: Tensor
    after: Tensor
    source: Tensor

    @property
    def parameter(self) -> str:
        """The name in `model.named_parameters()` of the weights: `fc1.values`, or `fc1.weight` of a masked layer."""
        weights = self.layer.connections
        name = next(name for name, p in self.layer.named_parameters(recurse=False) if p is weights)
        return f"{self.name}.{name}" if self.name else name

    @torch.no_grad()
    def move_(self, tensor: Tensor, new: float = 0.0) -> Tensor:
        """Let a tensor of the weights' shape, whose entries belong to the old connections, follow in place.

        Entries of removed connections are lost, those of grown ones are `new`. If the number of connections changed,
        the tensor gets the new size. Returns the tensor.
        """
        shape = self.layer.connections.shape
        shape = self.before.shape if shape == self.after.shape else shape  # masked layers have them in dense weights
        if tensor.shape != shape:
            raise ValueError(
                f"Rewiring.move_: the tensor must have the shape of {self.parameter!r}, {tuple(shape)}. "
                f"Got {tuple(tensor.shape)}."
            )
        if new:
            self.layer.permute_optimizer_state_(tensor, self.source, new)
        else:
            self.layer.permute_optimizer_state_(tensor, self.source)
        return tensor

    @torch.no_grad()
    def apply_(self, layer: Any) -> None:
        """Rewire a copy of the layer alike: its weights stay at their connections, and are zero at grown ones.

        Raises:
            ValueError: it has not the old connections.
        """
        if not torch.equal(layer.flat_indices(), self.before):
            raise ValueError(f"Rewiring.apply_: the layer has not the connections that {self.name!r} had before.")
        layer.rewire_(self.after, moved(layer.weights(), self.source, 0))


Follower = Callable[[Rewiring], Any]
