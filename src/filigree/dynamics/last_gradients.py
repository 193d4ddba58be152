"""What growth by gradient reads of the last backward pass: inputs of layers, gradients at their pre-activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class LastGradients:
    """Holds a layer's inputs and the gradients at its pre-activations, for growth by gradient: of all its calls in the
    last backward pass (a recurrent network calls a layer once a time step)."""

    def __init__(self, name: str, layer: Any) -> None:
        assert isinstance(layer, nn.Module)
        self._name, self._layer = name, layer
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.fresh = False  # no step has followed yet
        self._over = True  # a forward pass has begun since: the next gradient is of another backward pass
        self._handle: RemovableHandle | None = None
        self.watch(True)

    def watch(self, needed: bool) -> None:
        """Hold the gradients of passes to come, or those there are: then the layer has no hook of ours any more."""
        if needed and self._handle is None:
            self._handle = self._layer.register_forward_hook(self._forward)
        elif not needed and self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            self._over = True  # not within a backward pass, in which checkpointing computes a part again
        if not y.requires_grad or not layer.connections.requires_grad:
            return
        x, active = inputs[0].detach(), (y.detach() > 0 if getattr(layer, "relu", False) else None)

        def backward(dy: Tensor) -> None:
            if self._over:
                self.seen, self.fresh, self._over = [], True, False
            self.seen.append((x, dy.detach() if active is None else torch.where(active, dy.detach(), 0)))

        y.register_hook(backward)

    def last(self) -> list[tuple[Tensor, Tensor]]:
        if not self.seen:
            raise ValueError(
                f"Evolution: growth by gradient needs a backward pass before step(). None reached layer {self._name!r}."
            )
        return self.seen


def forget_watches_(model: nn.Module) -> None:
    """Take such hooks, which a copy of the model has of its own, from its layers."""
    for module in model.modules():
        for hook in list(module._forward_hooks.values()):
            if isinstance(watch := getattr(hook, "__self__", None), LastGradients):
                watch.watch(False)
