"""What layers of residual networks add their outputs to: the streams, whose errors a refit can make up for."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from filigree.modes import DispatchMode
from filigree.outputs import tensors_in

_SUMS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)

Added = Callable[[str, Tensor], Tensor | None]


class _Output(NamedTuple):
    """The output of a layer: its version and the operation that it is from tell whether something has changed it, and
    what was there before it."""

    tensor: weakref.ref[Tensor]
    version: int
    operation: int
    name: str


class Streams(DispatchMode):
    """Sees where the outputs of layers are added to a tensor of the same shape that was there before: one that does not
    depend on them. Not through batch norms: what is made up for there grows by their slopes, and a few samples with
    large outputs decide it.

    Args:
        added: called with the layer's name and that tensor; what it returns is added to the sum.
    """

    def __init__(self, added: Added) -> None:
        super().__init__()
        self._added, self._operation = added, 0
        self._outputs: dict[int, _Output] = {}
        self._computed: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # by which operation

    def watch(self, name: str, y: Any) -> None:
        """The output of this layer, which has just been computed."""
        if isinstance(y, Tensor):
            self._outputs[id(y)] = _Output(weakref.ref(y), y._version, self._operation, name)

    def _of(self, tensor: Tensor) -> _Output | None:
        """Which layer's output this is."""
        output = self._outputs.get(id(tensor))
        return output if output and output.tensor() is tensor and output.version == tensor._version else None

    def _before(self, tensor: Tensor, output: _Output) -> bool:
        """Whether the tensor is what it was when the layer ran."""
        reference, operation = self._computed.get(id(tensor), (None, 0))
        return reference is None or reference() is not tensor or operation < output.operation

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._operation += 1
        streams = list(self._streams(operation, args)) if operation in _SUMS and not kwargs else []
        y = operation(*args, **kwargs)
        for tensor in tensors_in(y):
            self._computed[id(tensor)] = weakref.ref(tensor), self._operation
        for output, stream in streams:
            if (more := self._added(output.name, stream)) is not None:
                y += more
        return y

    def _streams(self, operation: Any, args: Any) -> Any:
        """Of a sum the layers' outputs in it, and what each is added to."""
        if not isinstance(args[1], Tensor) or args[0].shape != args[1].shape:
            return
        for mine, other in (args, args[::-1]):
            output = self._of(mine)
            if output is not None and self._before(other, output):  # in place the sum takes the first one's place
                yield output, other.clone() if operation is _SUMS[1] and other is args[0] else other
