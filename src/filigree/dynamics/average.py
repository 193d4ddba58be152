"""Averages of weights whose connections move: an exponential moving average, and what others need to be right."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from filigree.dynamics.evolution import Evolvable
from filigree.dynamics.last_gradients import forget_watches_


@torch.no_grad()
def match_connections_(average: nn.Module, model: nn.Module) -> None:
    """Give the sparse layers of a copy of the model, in place, the connections that the model's have now.

    Call it before each update of an average that goes by position, such as `torch.optim.swa_utils.AveragedModel` or a
    loop of your own over the parameters of a deep copy:

        fg.match_connections_(average, model)
        average.update_parameters(model)

    A weight of the average stays at its connection, those of connections that the model has no more are dropped, and at
    others the average begins at zero, which the model's weight was until then. O(connections) where nothing was
    rewired.

    Args:
        average: a deep copy of the model, or a wrapper of one. model: whose layers are rewired.

    Raises:
        ValueError: they have not the same sparse layers; or an update was made since a rewiring without this call.
    """
    theirs, ours = ([m for m in part.modules() if isinstance(m, Evolvable)] for part in (average, model))
    if [_sizes(layer) for layer in theirs] != [_sizes(layer) for layer in ours]:
        raise ValueError(
            f"match_connections_: average must have the sparse layers of model, {len(ours)} of the same sizes in the "
            f"same order. It has {len(theirs)}."
        )
    for layer, current in zip(theirs, ours, strict=True):
        before, after = layer.flat_indices(), current.flat_indices()
        if not torch.equal(before, after):
            layer.rewire_(after, _at(layer.weights(), before, after))


def _sizes(layer: Any) -> tuple[type, int, int]:
    return type(layer), layer.out_features, layer.in_features


def _at(weights: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The weights of connections `before` at the flat indices `after`, both sorted; zero where there was none."""
    if not len(before):
        return weights.new_zeros(len(after))
    position = torch.searchsorted(before, after).clamp(max=len(before) - 1)
    return torch.where(before[position] == after, weights[position], 0)


class EMA:
    """An exponential moving average of a model's weights, connection by connection while the model is rewired.

    At each step `average = decay * average + (1 - decay) * weight`; the first step copies. Buffers are copied, batch
    norms' statistics among them, and so is the extra state of modules, such as the level of their noise. At a
    connection the average is that of the dense weight, zero included while it was not connected, since it was there
    last; where the model has no connection the average has none.

        ema = fg.EMA(model)
        fg.fit(model, train, optimizer=optimizer, epochs=10, callbacks=[fg.SET(model, optimizer), ema])
        fg.evaluate(ema.module, test)

    Args:
        model: the model that trains. decay: at least 0, less than 1.

    Attributes:
        module: the average, a copy of the model in eval mode that needs no gradients. updates: steps so far.
    """

    interval = "step"

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must be in [0, 1). Got {decay}.")
        self.model, self.decay, self.updates = model, decay, 0
        self.module = copy.deepcopy(model).requires_grad_(False).eval()
        forget_watches_(self.module)

    @torch.no_grad()
    def step(self) -> None:
        """After a step of the optimizer: follow the model."""
        match_connections_(self.module, self.model)
        weight = 1 - self.decay if self.updates else 1.0
        averaged = set()  # a tied weight is several modules' parameter
        for average, module in zip(self.module.modules(), self.model.modules(), strict=True):
            for mean, parameter in zip(average._parameters.values(), module._parameters.values(), strict=True):
                if mean is not None and parameter is not None and mean not in averaged:
                    mean.lerp_(parameter, weight)
                    averaged.add(mean)
            if not isinstance(module, Evolvable):  # whose buffers are connections
                for name, buffer in module.named_buffers(recurse=False):
                    copied = average._buffers[name]
                    if copied is not None and copied.shape == buffer.shape:
                        copied.copy_(buffer)
                    else:
                        average._buffers[name] = buffer.clone()
            if type(module).get_extra_state is not nn.Module.get_extra_state:  # noise and mollification are annealed
                average.set_extra_state(copy.deepcopy(module.get_extra_state()))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]
