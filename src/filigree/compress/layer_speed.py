"""Which layers a compression would make faster: tried on a copy, measured in turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.computed_weights import copied
from filigree.convert import layer_inputs
from filigree.measure.timing import time_interleaved
from filigree.modes import evaluating
from filigree.nn.resizing import has_units

Times = dict[str, tuple[float, float]]  # milliseconds of a layer before and after, by its name


def layer_times(
    model: nn.Module, change: Callable[[nn.Module], Any], names: list[str], example: Calibration, who: str
) -> Times:
    """How long each layer that `change` changes takes for what it reads of the example, before and after.

    Args:
        change: changes a copy of the model. names: layers that are looked at besides those that have units.
    """
    trial = copied(model)
    change(trial)
    changed = [
        name
        for name, layer in model.named_modules()
        if (name in names or has_units(layer)) and _differs(layer, trial.get_submodule(name))
    ]
    before, after = (layer_inputs(network, changed, example, who) for network in (model, trial))
    times = {}
    for name in changed:
        layers = (model.get_submodule(name), before[name]), (trial.get_submodule(name), after[name])
        with evaluating(layers[0][0]), evaluating(layers[1][0]):
            timings = time_interleaved([_run(layer, x) for layer, x in layers], 0.03)
        times[name] = timings[0].median, timings[1].median
    return times


def _differs(layer: nn.Module, other: nn.Module) -> bool:
    def shapes(module: nn.Module) -> list[Any]:
        return [tensor.shape for tensor in (*module.parameters(), *module.buffers())]

    return type(layer) is not type(other) or shapes(layer) != shapes(other)


def _run(layer: Any, x: Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return layer.forward(x)  # without the hooks of a user

    return run
