"""Copies of sparse layers: an average of weights that goes on by position after a rewiring is found out.

Position k of a sparse layer's values belongs to another connection after a rewiring. What averages values by position,
as `torch.optim.swa_utils.AveragedModel` does in a deep copy, mixes weights of different connections then. Nothing tells
a copy that is an average from a snapshot or from a network that trains by itself, and a layer never sees how its values
are written. So when a layer is rewired, its deep copies note their fingerprints, and before they compute or are saved
again they compare.
"""

from __future__ import annotations

import warnings
import weakref
import zlib
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_UNTOLD = (
    "{}: an average of weights was not told that its layer was rewired, and mixes weights of different connections. "
    "Call fg.match_connections_(average, model) before each update, or use fg.EMA."
)


def fingerprint(*tensors: Tensor) -> int:
    """A checksum of what tensors hold (CRC-32 of their bytes), 0 of those without memory of their own."""
    total = 0
    for tensor in tensors:
        if is_plain(tensor) and not tensor.is_meta and tensor.numel():
            data: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            total = zlib.crc32(data, total)
    return total


def is_plain(tensor: Tensor) -> bool:
    """Whether it is one of torch's own, not one that stands for others while something is traced or mapped."""
    return type(tensor) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def version(tensor: Tensor) -> int:
    """How often it was written in place, as far as torch counts: not through `.data`, nor in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


class Copies:
    """The deep copies of a layer and what it was copied from; itself part of the layer, and copied with it.

    Attributes:
        waiting: whether a relative was rewired since, and this layer was not told.
        known: fingerprints of all topologies that the layer and its relatives have had.
        has_relatives: whether it is a copy, or has had copies.
    """

    def __init__(self, layer: TracksCopies, parent: Copies | None = None) -> None:
        self._layer = weakref.ref(layer)
        self._relatives: weakref.WeakSet[Copies] = weakref.WeakSet()
        self.known: set[int] = set()
        self.waiting = self._warned = False
        self.has_relatives = parent is not None
        self._in_use = parent is None  # of a copy: its weights were written at least once since it was made
        self._weights, self._topology = (0, 0), 0
        self._rewired: weakref.WeakSet[Copies] = weakref.WeakSet()  # relatives, since when this waits
        self._hook: RemovableHandle | None = None
        if parent is not None:
            self._weights, self.known = _written(layer.connections), parent.known
            self._relatives.add(parent)
            parent._relatives.add(self)
            parent.has_relatives = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Copies:
        return self  # the copied layer makes its own of it: `__setstate__`

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a layer that comes from a file has no relatives

    def rewired(self, layer: TracksCopies) -> None:
        """The layer was rewired: its relatives with another topology note what they hold."""
        self.warn_of_mixed(layer)
        self.settle()
        self._layer = weakref.ref(layer)  # another class may have taken over its parts
        if not self._relatives:
            return
        now = fingerprint(*layer.index_buffers())
        for relative in list(self._relatives):
            relative._note(self, now)

    def settle(self) -> None:
        """Topology and weights of the layer belong together again."""
        self.waiting, self._in_use = False, True

    def _note(self, rewired: Copies, now: int) -> None:
        layer = self._layer()
        if layer is None or (topology := fingerprint(*layer.index_buffers())) == now:
            return
        weights = _written(layer.connections)
        self._in_use |= weights != self._weights
        self._weights, self._topology = weights, topology
        self.waiting = True
        self._rewired.add(rewired)
        if layer.connections.grad is not None:
            self._leave()
        elif layer.connections.requires_grad and self._hook is None:
            self._hook = layer.connections.register_post_accumulate_grad_hook(self._leave)

    def _leave(self, parameter: Tensor | None = None) -> None:
        """The layer trains by itself: what the others rewire is none of its business."""
        if self._hook is not None:
            self._hook.remove()
        self.waiting, self._hook = False, None
        for rewired in list(self._rewired):
            self._relatives.discard(rewired)
            rewired._relatives.discard(self)
        self._rewired.clear()

    def check(self, layer: TracksCopies) -> None:
        """Before a layer that is `waiting` computes or is saved.

        Raises:
            ValueError: its weights were averaged with those of the rewired layer, and it was not told.
        """
        if self._mixes(layer):
            raise ValueError(_UNTOLD.format(type(layer).__name__))

    def warn_of_mixed(self, layer: TracksCopies) -> None:
        """`UserWarning`, once, of copies that `check` refuses: their weights may be written into the layer."""
        for relative in list(self._relatives):
            other = relative._layer()
            if other is not None and relative.waiting and not relative._warned and relative._mixes(other):
                relative._warned = True
                warnings.warn(_UNTOLD.format(type(layer).__name__), stacklevel=3)

    def _mixes(self, layer: TracksCopies) -> bool:
        written = self.written(layer)
        follows = fingerprint(*layer.index_buffers()) != self._topology  # copied from the rewired layer's
        if not written and not follows:
            return False  # a snapshot
        if written and follows and not (layer.by_position and self._in_use):
            self.settle()  # the first update of an average copies everything
            return False
        return True

    def written(self, layer: TracksCopies) -> bool:
        """Whether the weights were written since a relative was rewired."""
        return _written(layer.connections) != self._weights

    def moved(self, layer: TracksCopies) -> None:
        """The layer's tensors were replaced by others with the same numbers: another device, another type."""
        self._weights = _written(layer.connections)


def _written(weights: Tensor) -> tuple[int, int]:
    return version(weights), fingerprint(weights)


class TracksCopies(nn.Module):
    """Base of layers that are rewired: a deep copy that goes on by position afterwards is found out."""

    def __init__(self) -> None:
        super().__init__()
        self._copies = Copies(self)

    index_names: tuple[str, ...]
    """The buffers that say where the connections are."""

    by_position = True
    """Whether a weight is known by its position among the connections, not by that in a dense weight."""

    @property
    def connections(self) -> nn.Parameter:
        raise NotImplementedError

    def index_buffers(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.index_names]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        parent = self.__dict__.get("_copies")
        self._copies = Copies(self, parent)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._check_copies()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if all(prefix + name in state_dict for name in self.index_names):
            self._copies.settle()

    def train(self, mode: bool = True) -> Self:
        if mode != self.training:
            self._copies.warn_of_mixed(self)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        untouched = self._copies.waiting and not self._copies.written(self)
        super()._apply(fn, recurse)
        if untouched:
            self._copies.moved(self)
        return self

    def _check_copies(self) -> None:
        if not torch.compiler.is_compiling() and self._copies.waiting:
            self._copies.check(self)
