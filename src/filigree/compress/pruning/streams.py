"""What layers of residual networks add their outputs to: the streams, whose errors a refit can make up for."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
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
    depend on them. Of several sums of an output the first counts. Not through batch norms: what is made up for there
    grows by their slopes, and a few samples with large outputs decide it.

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
        streams = list(self._streams(args)) if operation in _SUMS and not kwargs else []
        changes = [self._added(name, stream) for name, stream in streams]  # a sum in place overwrites it
        y = operation(*args, **kwargs)
        for tensor in tensors_in(y):
            self._computed[id(tensor)] = weakref.ref(tensor), self._operation
        for change in changes:
            if change is not None:
                y += change
        return y

    def _streams(self, args: Any) -> Iterator[tuple[str, Tensor]]:
        """Of a sum the layers whose outputs are in it, and what each is added to; of several sums the first counts."""
        if not isinstance(args[1], Tensor) or args[0].shape != args[1].shape:
            return
        for mine, other in (args, args[::-1]):
            output = self._of(mine)
            if output is not None and self._before(other, output):
                del self._outputs[id(mine)]
                yield output.name, other
