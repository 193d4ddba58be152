"""Which parameters take part in the forward and the backward pass, and which the optimizer moves (000, chapter 6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from filigree.nn.asymmetric_linear import Asymmetrical, Rule
from filigree.ops import selection
from filigree.ops.selection import Kept


@dataclass
class LayerUsage:
    """What a layer's last forward and backward pass used; sets of parameters are masks `(out, in)`, of biases `(out,)`.

    Attributes:
        forward_neurons: `(batch, out)`, the neurons chosen in the forward pass (all, without a function for it).
        backward_neurons: `(batch, out)`, those chosen by sensitivity.
        backward_inputs: `(batch, in)`, the chosen inputs.
        by_weights: `(out, in)`, what the perceptron adjoint chose, or None.
    """

    weight: Tensor
    neurons: str = "intersection"
    forward_neurons: Tensor | None = None
    backward_neurons: Tensor | None = None
    backward_inputs: Tensor | None = None
    by_weights: Tensor | None = None
    _before: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._before = self.weight.detach().clone()

    def forward(self, sample: int | None = None) -> Tensor:
        """Parameters in the forward pass of one sample, or of the batch: the union over its samples."""
        chosen = _one_or_any(_seen(self.forward_neurons), sample)
        return chosen.unsqueeze(1).expand(self.weight.shape)

    def backward(self, sample: int | None = None) -> Tensor:
        """Parameters whose gradient one sample, or the batch, took part in (000, eqs. 8.1, 8.5, 8.9)."""
        neurons, inputs = _seen(self.backward_neurons), _seen(self.backward_inputs)
        if sample is None:  # the union of the outer products
            own = (neurons.t().double() @ inputs.double()) > 0
            inputs_of_batch = inputs.any(0)
        else:
            own = neurons[sample].unsqueeze(1) & inputs[sample]
            inputs_of_batch = inputs[sample]
        if self.by_weights is not None and self.neurons == "union":
            own = own | (self.by_weights & inputs_of_batch)
        return own

    def biases(self, sample: int | None = None) -> Tensor:
        """Biases that took part in the backward pass: those of the chosen neurons."""
        chosen = _one_or_any(_seen(self.backward_neurons), sample)
        if self.by_weights is not None and self.neurons == "union":
            chosen = chosen | self.by_weights.any(1)
        return chosen

    def moved(self) -> Tensor:
        """Parameters that have changed since watching began: momentum moves more than those that were used."""
        return self.weight.detach() != self._before

    def is_symmetric(self, sample: int | None = None) -> bool:
        """Whether forward and backward pass used the same parameters (000, definition 1)."""
        return bool((self.forward(sample) == self.backward(sample)).all())

    # -- called by the layer ------------------------------------------------------------------------------------------

    def forward_pass(self, kept: Tensor | None, y: Tensor) -> None:
        self.forward_neurons = torch.ones_like(y, dtype=torch.bool) if kept is None else kept

    def backward_pass(self, rule: Rule, kept: Kept, x: Kept, adjoint: Tensor | None, delta: Tensor) -> None:
        self.neurons = rule.neurons
        if rule.sensitivity is not None:
            self.backward_neurons = selection.dense(kept) != 0  # an attribute of zero is a dropped neuron (6.5)
        elif rule.forward is not None:
            self.backward_neurons = _seen(self.forward_neurons)
        else:
            self.backward_neurons = torch.ones_like(delta, dtype=torch.bool)
        inputs = selection.dense(x)
        self.backward_inputs = inputs != 0 if rule.inputs is not None else torch.ones_like(inputs, dtype=torch.bool)
        self.by_weights = None if adjoint is None else adjoint != 0


@contextmanager
def watch(model: nn.Module) -> Iterator[dict[str, LayerUsage]]:
    """Watch the parameters of all layers that `fg.Asymmetric` has converted.

    with fg.watch(model) as usage:
        loss.backward(); optimizer.step()
    usage["layers.0"].backward(sample=3)      # (out, in): what sample 3 used
    usage["layers.0"].moved()                 # what the optimizer moved
    """
    watched: dict[str, LayerUsage] = {}
    layers: dict[str, Any] = {
        name: m for name, m in model.named_modules() if isinstance(m, Asymmetrical) and hasattr(m, "weight")
    }
    if not layers:
        raise ValueError("watch: the model has no asymmetric linear layer. Convert it with fg.Asymmetric first.")
    for name, layer in layers.items():
        layer.watched = watched[name] = LayerUsage(layer.weight)
    try:
        yield watched
    finally:
        for layer in layers.values():
            layer.watched = None


def _seen(found: Tensor | None) -> Tensor:
    if found is None:
        raise ValueError("usage: that pass has not been run while the model was watched.")
    return found


def _one_or_any(chosen: Tensor, sample: int | None) -> Tensor:
    return chosen.any(0) if sample is None else chosen[sample]
