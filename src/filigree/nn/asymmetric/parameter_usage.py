"""Which parameters take part in the two passes, and which the optimizer moves (Srivastava 2022, chapter 6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from filigree.nn.asymmetric.asymmetric_linear import Asymmetrical


@dataclass
class LayerUsage:
    """The parameters that a layer's last forward and backward pass used.

    Sets of parameters are masks: `(out, in)` of a linear layer, `(nnz,)` of a sparse one's connections, `(out, in)`
    kernels of a convolution, whose neurons are its channels; sets of biases `(out,)`.

    Attributes:
        forward_neurons: `(batch, out)`, the neurons chosen in the forward pass (all, without a function for it).
        backward_neurons: `(batch, out)`, those chosen by sensitivity.
        backward_inputs: `(batch, in)`, the chosen inputs.
        by_weights: the set of parameters that the perceptron adjoint chose, or None.
    """

    weight: Tensor
    connections: tuple[Tensor, Tensor] | None = None  # rows and columns of a sparse layer's
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
        neurons = _seen(self.forward_neurons)
        return self._of(neurons, torch.ones_like(_seen(self.backward_inputs)), sample)

    def backward(self, sample: int | None = None) -> Tensor:
        """Parameters whose gradient one sample, or the batch, took part in (Srivastava 2022, eqs. 8.1, 8.5, 8.9)."""
        neurons, inputs = _seen(self.backward_neurons), _seen(self.backward_inputs)
        own = self._of(neurons, inputs, sample)
        if self.by_weights is not None and self.neurons == "union":
            own = own | (self.by_weights & self._of(torch.ones_like(neurons), inputs, sample))
        return own

    def biases(self, sample: int | None = None) -> Tensor:
        """Biases that took part in the backward pass: those of the chosen neurons."""
        neurons = _seen(self.backward_neurons)
        chosen = neurons.any(0) if sample is None else neurons[sample]
        if self.by_weights is not None and self.neurons == "union":
            if self.connections is None:
                chosen = chosen | self.by_weights.any(1)
            else:
                chosen = chosen.index_fill(0, self.connections[0][self.by_weights], True)
        return chosen

    def moved(self) -> Tensor:
        """Parameters that have changed since tracking began: momentum moves more than those that were used."""
        moved = self.weight.detach() != self._before
        return moved.flatten(2).any(2) if moved.dim() > 2 else moved

    def is_symmetric(self, sample: int | None = None) -> bool:
        """Whether forward and backward pass used the same parameters (Srivastava 2022, definition 1)."""
        return bool((self.forward(sample) == self.backward(sample)).all())

    def _of(self, neurons: Tensor, inputs: Tensor, sample: int | None) -> Tensor:
        """The parameters between chosen neurons and chosen inputs, of a sample or of any."""
        if sample is not None:
            neurons, inputs = neurons[sample : sample + 1], inputs[sample : sample + 1]
        if self.connections is not None:
            rows, columns = self.connections
            return (neurons[:, rows] & inputs[:, columns]).any(0)
        return (neurons.t().double() @ inputs.double()) > 0

    # -- called by the layer ------------------------------------------------------------------------------------------

    def saw_forward(self, kept: Tensor | None, batch: int, outs: int) -> None:
        self.forward_neurons = torch.ones(batch, outs, dtype=torch.bool) if kept is None else kept.cpu()

    def saw_backward(
        self, neurons: str, sensitivity: Tensor | None, inputs: Tensor | None, ins: int, by_weights: Tensor | None
    ) -> None:
        """Record masks of what was chosen, None where no function chose; an attribute of 0 is dropped (eq. 6.5)."""
        self.neurons, self.by_weights = neurons, by_weights
        self.backward_neurons = _seen(self.forward_neurons) if sensitivity is None else sensitivity
        batch = len(self.backward_neurons)
        self.backward_inputs = torch.ones(batch, ins, dtype=torch.bool) if inputs is None else inputs


@contextmanager
def track_usage(model: nn.Module) -> Iterator[dict[str, LayerUsage]]:
    """Track the parameters of the linear, sparse and convolutional layers that `fg.Asymmetric` has converted.

    with fg.track_usage(model) as usage:
        loss.backward(); optimizer.step()
    usage["layers.0"].backward(sample=3)      # (out, in): what sample 3 used
    usage["layers.0"].moved()                 # what the optimizer moved
    """
    layers = {
        name: (layer, tracked)
        for name, layer in model.named_modules()
        if isinstance(layer, Asymmetrical) and (tracked := layer.tracked()) is not None
    }
    if not layers:
        raise ValueError("track_usage: the model has no asymmetric layer. Convert it with fg.Asymmetric first.")
    watched: dict[str, LayerUsage] = {}
    for name, (layer, tracked) in layers.items():
        layer.watched = watched[name] = LayerUsage(*tracked)
    try:
        yield watched
    finally:
        for layer, _ in layers.values():
            layer.watched = None


def _seen(mask: Tensor | None) -> Tensor:
    if mask is None:
        raise ValueError("usage: that pass has not been run while the usage was tracked.")
    return mask
