"""Which layers a compression would make faster: tried on a copy, measured in turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from filigree.calibration import Calibration
from filigree.computed_weights import copied
from filigree.convert import inference_context, run_on
from filigree.measure.timing import time_interleaved
from filigree.modes import evaluating
from filigree.nn.resizing import has_units

_Call = tuple[tuple[Any, ...], dict[str, Any]]  # the arguments of a call
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
    before, after = (_calls(network, changed, example, who) for network in (model, trial))
    times = {}
    for name in changed:
        layers = (model.get_submodule(name), before[name]), (trial.get_submodule(name), after[name])
        with evaluating(layers[0][0]), evaluating(layers[1][0]):
            timings = time_interleaved([_run(layer, calls) for layer, calls in layers], 0.03)
        times[name] = timings[0].median, timings[1].median
    return times


def _calls(model: nn.Module, names: list[str], example: Calibration, who: str) -> dict[str, list[_Call]]:
    """The arguments of each of these modules in all its calls."""
    calls: dict[str, list[_Call]] = {name: [] for name in names}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: calls[name].append((args, kwargs))

    handles = (model.get_submodule(name).register_forward_pre_hook(keep(name), with_kwargs=True) for name in names)
    with inference_context(model, handles):
        run_on(model, example, who)
    if missed := [name for name in names if not calls[name]]:
        raise ValueError(f"{who}: the data do not reach {missed[0]!r}.")
    return calls


def _differs(layer: nn.Module, other: nn.Module) -> bool:
    def shapes(module: nn.Module) -> list[Any]:
        return [tensor.shape for tensor in (*module.parameters(), *module.buffers())]

    return type(layer) is not type(other) or shapes(layer) != shapes(other)


def _run(layer: Any, calls: list[_Call]) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            for args, kwargs in calls:
                layer.forward(*args, **kwargs)  # without the hooks of a user

    return run
