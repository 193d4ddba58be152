"""How networks and layers run, and how long that takes."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.computed_weights import copied
from filigree.convert import inference_context, layer_inputs, run_on
from filigree.measure.timing import Timing, time_interleaved
from filigree.modes import without_shortcuts
from filigree.optimize.optimization import optimize_
from filigree.outputs import tensors_in
from filigree.preserved import has_hooks

BRIEF = 0.01  # seconds of a measurement that only compares


@dataclass(frozen=True)
class LayoutOptions:
    """How a network is laid out: the `tolerance` and the `floats` of `fg.optimize_`."""

    tolerance: float = 0.0
    floats: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As the options of a call."""
        floats = f", floats={list(self.floats)!r}" if self.floats else ""
        return f"tolerance={self.tolerance:g}{floats}"

    def described(self) -> str:
        """In words; nothing of a layout that is exact."""
        floats = f" but for {', '.join(self.floats)}" if self.floats else ""
        return f"int8 within {self.tolerance:g}{floats}" if self.tolerance else ""

    def inside(self, name: str) -> LayoutOptions:
        """The layout of the layer of this name, which is called `layer` where it stands alone."""
        inside = [each for each in self.floats if f"{each}.".startswith(f"{name}.")]
        around = any(f"{name}.".startswith(f"{each}.") for each in self.floats)
        return replace(self, floats=("layer",) if around else tuple(f"layer{each[len(name) :]}" for each in inside))


EXACT = LayoutOptions()


def laid_out_(
    network: nn.Module, example: Calibration, seconds: float = BRIEF, layout: LayoutOptions = EXACT
) -> tuple[str, list[str]]:
    """Lay a network out for inference on the example, in place.

    All of `shrink` comes through here: what `fg.optimize_` can do more, it can do for all.

    Returns:
        Why it, or a part of it, stays as it was; the layers in int8 as `floats` takes them, the largest errors first.
    """
    x = example.chunks()[0]
    if not isinstance(x, Tensor) or example.forward is not None:
        return "its input is no tensor", []
    if any(parameter.device.type != "cpu" for parameter in network.parameters()):
        return "it is not on the CPU", []
    try:
        report = optimize_(network, x, seconds=seconds, tolerance=layout.tolerance, floats=layout.floats)
    except ValueError as error:
        return str(error), []
    in_int8 = sorted((layer for layer in report.layers if layer.error), key=lambda layer: -layer.error)
    return next(iter(report.notes), ""), list(dict.fromkeys(glob.escape(layer.name) for layer in in_int8))


def running(network: nn.Module, example: Calibration) -> Callable[[], Any]:
    """A call that runs a network in evaluation mode on an example."""
    call = example.repeatable(network, example.chunks()[0])

    def run() -> Any:
        with torch.inference_mode():
            return call()

    return run


def timings(networks: Sequence[nn.Module], example: Calibration, seconds: float) -> list[Timing]:
    """The times of the networks on the example, in turns; they are in evaluation mode."""
    return time_interleaved([running(network, example) for network in networks], seconds)


_X = ...  # in a layer's arguments: the tensor that it reads


@dataclass(frozen=True)
class LayerCall:
    """How a layer is called: with one tensor, which may be several of its arguments, and with no other tensors."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, layer: nn.Module, x: Any) -> Any:
        args = (x if arg is _X else arg for arg in self.args)
        return layer(*args, **{key: x if arg is _X else arg for key, arg in self.kwargs.items()})


def calls_of(
    model: nn.Module, names: Sequence[str], example: Calibration
) -> tuple[dict[str, LayerCall], list[str]]:  # fmt: skip
    """How each of these layers is called first, and lines about those that cannot be run alone."""
    calls: dict[str, LayerCall | str] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = next(iter((*args, *kwargs.values())), None)
            given = [arg for arg in (*args, *kwargs.values()) if arg is not x]
            if not isinstance(x, Tensor) or tensors_in(given):
                what = "several tensors" if isinstance(x, Tensor) else f"a {type(x).__name__}, no tensor"
                calls.setdefault(name, f"{name} stays: it reads {what}")
                return
            named = {key: _X if arg is x else arg for key, arg in kwargs.items()}
            calls.setdefault(name, LayerCall(tuple(_X if arg is x else arg for arg in args), named))

        return hook

    hooks = (model.get_submodule(name).register_forward_pre_hook(note(name), with_kwargs=True) for name in names)
    with inference_context(model, hooks), without_shortcuts():
        run_on(model, example, "shrink")
    calls |= {name: f"{name} stays: the data do not reach it" for name in names if name not in calls}
    able = {name: call for name in names if isinstance(call := calls[name], LayerCall)}
    return able, [call for name in names if isinstance(call := calls[name], str)]


class _Alone(nn.Module):
    """A layer as a network; of one that returns several things, as recurrent ones do, the first."""

    def __init__(self, layer: nn.Module, call: LayerCall, x: Tensor) -> None:
        super().__init__()
        self.layer, self.call = layer.eval(), call
        with torch.no_grad():
            self.several = isinstance(call(layer, x), tuple)

    def forward(self, x: Any) -> Any:
        y = self.call(self.layer, x)
        return y[0] if self.several else y


class LayerClock:
    """How long layers take alone, each as fast as it can be laid out, in turns with the same layer as it was.

    `calls`: the layers by name, and how they are called; `layout`: of the model.
    """

    def __init__(
        self, model: nn.Module, calls: Mapping[str, LayerCall], example: Calibration, layout: LayoutOptions = EXACT
    ) -> None:  # fmt: skip
        self._model, self._calls, self._example, self._layout = model, calls, example, layout
        names = list(calls)
        self._inputs = layer_inputs(model, names, example, "shrink")
        self._laid_out: dict[str, nn.Module] = {}
        self.before: dict[str, float] = {}
        for name in names:
            self._laid_out[name] = self._alone(model, name, self._inputs[name])
            timing = time_interleaved([self._run(self._laid_out[name], self._inputs[name])], BRIEF)
            self.before[name] = timing[0].low

    def ratios(self, changed: nn.Module) -> dict[str, float]:
        """The time of each layer that differs, over that of the layer as it was."""
        names = [name for name in self.before if _differ(self._model.get_submodule(name), changed.get_submodule(name))]
        inputs = layer_inputs(changed, names, self._example, "shrink") if names else {}
        ratios = {}
        for name in names:
            after = self._alone(changed, name, inputs[name])
            pairs = (self._laid_out[name], self._inputs[name]), (after, inputs[name])
            first, second = time_interleaved([self._run(*pair) for pair in pairs], BRIEF)
            ratios[name] = second.low / first.low  # of few runs the least disturbed ones
        return ratios

    def _alone(self, model: nn.Module, name: str, x: Tensor) -> nn.Module:
        layer = copied(model.get_submodule(name))
        alone = _Alone(layer, self._calls[name], x).eval()
        if not has_hooks(layer):
            laid_out_(alone, Calibration(x), layout=self._layout.inside(name))
        return alone

    @staticmethod
    def _run(layer: nn.Module, x: Tensor) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return layer(x)

        return run


def _differ(layer: nn.Module, other: nn.Module) -> bool:
    def tensors(module: nn.Module) -> list[Any]:
        return [tensor.shape for tensor in (*module.parameters(), *module.buffers())]

    return type(layer) is not type(other) or tensors(layer) != tensors(other)
