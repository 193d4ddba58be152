"""How many units each layer keeps, from one number for the whole network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor, nn

from filigree.calibration import Calibration
from filigree.compress.passes import shown
from filigree.compress.pruning.errors import OutputError
from filigree.compress.pruning.graph import Units, layer_macs
from filigree.compress.pruning.jacobians import jacobian_norms
from filigree.compress.pruning.redundancy import Redundancy
from filigree.compress.speed import in_turns
from filigree.config import Config, config
from filigree.nn.resizing import has_units, sizes_of
from filigree.summary import numbers_of

LEVELS = (0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PAYS = 0.99  # of the time: units that save less are left whole where time is what counts
JUDGED = 64  # samples on which single groups are tried

Counts = dict[str, int | None]  # units that stay, by the group's name; groups that are not named stay whole
Chosen = Callable[[Units, int | None], Tensor]  # the kept units
Built = Callable[[Counts, bool], nn.Module]  # a network of so many units, compensated or not


@config
class MaxError(Config):
    """The cheapest network with which an error stays within a tolerance, shared out over the layers (John 2019, 3.3
    and 3.10).

    Errors are measured on data to which nothing was fitted: those given as `validation`, else a part that is split off.
    A layer's own error is the root of the share of the variance of the next layer's pre-activations that is lost when
    the kept units, refitted by least squares, stand for all.

    Args:
        error: the tolerance, relative.
        of: "output": the network's output, `|Y' - Y| / |Y - mean Y|` (of several outputs the largest error), measured
            with the compensation asked for. Units are taken out where the least error is bought for the multiply-adds
            saved (`allocate`). "layer": each layer's own error.
            "bound": Theorem 2's bound on the output, `sum_l epsilon_l <= error |Y|`: each of L layers gets `error |Y| /
            L`, its change of weights being what least squares leaves. Chains of layers only, and so loose a bound that
            it removes few units: it is here to be compared.
    """

    error: Annotated[float, pydantic.Field(gt=0, lt=1)]
    of: Literal["output", "layer", "bound"] = "output"


@config
class Budget(Config):
    """A target for the whole network, met by taking out the units that cost the least error for what they save
    (`allocate`). Give one of:

    Args:
        macs, parameters, bytes: at most, of the pruned network; up to 1: a share of the original's.
        latency_ms: at most, measured on this machine with `batch` samples, in turns with the network as it is. Layers
            whose units save no time stay whole.
    """

    macs: Annotated[float, pydantic.Field(gt=0)] | None = None
    parameters: Annotated[float, pydantic.Field(gt=0)] | None = None
    bytes: Annotated[float, pydantic.Field(gt=0)] | None = None
    latency_ms: Annotated[float, pydantic.Field(gt=0)] | None = None
    batch: Annotated[int, pydantic.Field(ge=1)] = 1

    def __post_init__(self) -> None:
        given = [name for name in ("macs", "parameters", "bytes", "latency_ms") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"Budget: give one of macs, parameters, bytes and latency_ms. Got {', '.join(given) or 'none'}."
            )


@dataclass(frozen=True)
class Allocation:
    """How many units of each group stay, and what a report says of how that was found."""

    counts: Counts
    notes: dict[str, str]


def allocate(
    keep: Budget | MaxError, model: nn.Module, redundancies: Mapping[str, Redundancy], chosen: Chosen, built: Built,
    error: OutputError, round_to: int,
) -> Allocation:  # fmt: skip
    """How many units of each group stay.

    From the whole network on, units are taken out step by step: always of the group where the least error comes with
    the cost that is saved, `d(w^2 e^2) / dC`. e is the group's own error, w the error of the network's output that
    comes with it (measured once, half of the group's units gone), C the cost: multiply-adds, parameters, or measured
    time. The state that meets the target is then found by bisection.

    Args:
        error: of the outputs, on the data of the search, to which nothing is fitted where there are enough of them.
    """
    data = error.data
    groups = [redundancy.group for redundancy in redundancies.values()]
    curves: dict[str, list[tuple[int, float]]] = {}
    of_bound = isinstance(keep, MaxError) and keep.of == "bound"
    epsilons = _shares_of_bound(model, redundancies, data) if of_bound else {}
    for group in groups:
        counts = sorted({_rounded(max(1, round(level * group.count)), group.count, round_to) for level in LEVELS})
        own = epsilons[group.name] if of_bound else redundancies[group.name].own_error
        curves[group.name] = [(count, own(chosen(group, count))) for count in counts]
    if isinstance(keep, MaxError) and keep.of != "output":
        tolerance = keep.error / (len(groups) if of_bound else 1)
        least: Counts = {
            name: next((count for count, own in curve if own <= tolerance), curve[-1][0])
            for name, curve in curves.items()
        }
        return Allocation(least, {})
    weights = {
        group.name: _weight(group, curves[group.name], built, error)
        for group in shown(groups, "sensitivities", data.progress)
    }
    if isinstance(keep, MaxError):
        states = _states(groups, curves, weights, _Cost(model, groups, layer_macs(model, data[:1])))
        return Allocation(_last(states, lambda state: error(built(state, True)) <= keep.error), {})
    what, limit = _limit(keep, model, data)
    example = data[: keep.batch]
    notes: dict[str, str] = {}
    cost: Callable[[Counts], float]
    if what == "latency_ms":
        cost, notes = _time_saved(model, groups, curves, built, example)

        def above(state: Counts) -> bool:
            return in_turns(model, built(state, False), example)[1].median > limit

        groups = [group for group in groups if group.name not in notes]
    else:
        numbers = layer_macs(model, data[:1]) if what == "macs" else _layer_parameters(model)
        cost = _Cost(model, groups, numbers)

        def above(state: Counts) -> bool:
            return _measure(what, built(state, False), data) > limit

    states = _states(groups, curves, weights, cost)
    last = _last([{}, *states], above)
    if last == states[-1]:
        raise ValueError(f"Budget: even the smallest of these networks is above {keep}.")
    state = states[0] if not last else states[states.index(last) + 1]
    whole: Counts = {name: redundancy.group.count for name, redundancy in redundancies.items()}
    return Allocation(whole | state, notes)


def _weight(group: Units, curve: list[tuple[int, float]], built: Built, error: OutputError) -> float:
    """How much of the group's own error the network's output shows, with half of the units."""
    count, own = min(curve, key=lambda point: abs(point[0] - group.count / 2))
    return error(built({group.name: count}, True)) / own if own > 1e-6 else 1.0


def _states(
    groups: list[Units], curves: Mapping[str, list[tuple[int, float]]], weights: Mapping[str, float],
    cost: Callable[[Counts], float],
) -> list[Counts]:  # fmt: skip
    """The networks from the whole to the smallest, each a step further where the least error buys the most.

    The price of a step is that of the best stretch of steps that begins with it: where the first ones are dear and the
    others are free, they are worth their mean.
    """
    state: Counts = {group.name: group.count for group in groups}
    steps = {
        group.name: [(n, (weights[group.name] * own) ** 2) for n, own in reversed(curves[group.name])]
        for group in groups
    }
    states = [dict(state)]
    while any(len(points) > 1 for points in steps.values()):
        now, prices = cost(state), {}
        for name, (first, *others) in steps.items():
            if others:
                prices[name] = min(
                    (error - first[1]) / max(now - cost(state | {name: n}), 1e-9 * abs(now)) for n, error in others
                )
        name = min(prices, key=lambda name: prices[name])
        steps[name] = steps[name][1:]
        state[name] = steps[name][0][0]
        states.append(dict(state))
    return states


class _Cost:
    """Of a network of so many units the sum over its layers of `cost x outputs that stay x inputs that stay`."""

    def __init__(self, model: nn.Module, groups: list[Units], layers: Mapping[str, int]) -> None:
        self._layers, self._counts = layers, {group.name: group.count for group in groups}
        self._sides: list[tuple[str, str, str, float]] = []  # group, layer, side, share of the side
        for group in groups:
            sides = [(name, "out", len(units)) for name, units in group.makers.items()]
            sides += [(reader.name, "in", len(reader.columns)) for reader in group.readers]
            for name, side, channels in sides:
                layer: Any = model.get_submodule(name)
                outs, ins, *_ = sizes_of(layer)  # type: ignore[misc]
                whole = outs if side == "out" else ins // getattr(layer, "groups", 1)
                self._sides.append((group.name, name, side, min(1.0, channels / whole)))

    def __call__(self, counts: Counts) -> float:
        stays = dict.fromkeys(((name, side) for name in self._layers for side in ("out", "in")), 1.0)
        for group, name, side, share in self._sides:
            whole = self._counts[group]
            kept = counts.get(group)
            if name in self._layers and kept is not None:
                stays[name, side] -= share * (1 - kept / whole)
        return sum(cost * stays[name, "out"] * stays[name, "in"] for name, cost in self._layers.items())


def _time_saved(
    model: nn.Module, groups: list[Units], curves: Mapping[str, list[tuple[int, float]]], built: Built,
    example: Calibration,
) -> tuple[Callable[[Counts], float], dict[str, str]]:  # fmt: skip
    """The time of a network of so many units, each group's share measured with half of its units, in turns with the
    network as it is; and the groups whose units save none, each with a note."""
    saved, notes, whole = {}, {}, 0.0
    for group in shown(groups, "timing", example.progress):
        count, _ = min(curves[group.name], key=lambda point: abs(point[0] - group.count / 2))
        whole_now, half = in_turns(model, built({group.name: count}, False), example)
        whole = whole_now.median
        if count < group.count and half.median > PAYS * whole:
            notes[group.name] = f"left whole: half of its units take {half.median / whole:.2f} of the time"
        saved[group.name] = (whole - half.median) / max(1, group.count - count)
    if len(notes) == len(groups):
        notes = {}  # together they may

    def cost(counts: Counts) -> float:
        gone = {group.name: group.count - (counts.get(group.name) or group.count) for group in groups}
        return whole - sum(saved[name] * units for name, units in gone.items())

    return cost, notes


def _last(ordered: list[Counts], holds: Callable[[Counts], bool]) -> Counts:
    """The last state for which `holds`, by bisection; the first is taken to hold."""
    low, high = 0, len(ordered) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(ordered[middle]) else (low, middle - 1)
    return ordered[low]


def _shares_of_bound(
    model: nn.Module, redundancies: Mapping[str, Redundancy], data: Calibration
) -> dict[str, Callable[[Tensor], float]]:
    """For each group: kept units -> its epsilon_l, relative to the output's mean norm.

    Theorem 2 with the change of the readers' weights that least squares makes: `|dY_l / dW_l delta W_l|` is the norm of
    the change of what layer l computes, carried on by the norms of the Jacobians.
    """
    if data.tensor is None:
        raise ValueError('MaxError: of="bound" needs a tensor as data.')
    norms = jacobian_norms(model, data.tensor[:100])
    scale = float(norms.y.flatten(1).norm(dim=1).mean())
    carried, after = norms.outer[next(iter(norms.outer))].new_ones(len(norms.y)), {}
    for name in reversed(norms.step):
        after[name] = float((carried * norms.outer[name]).mean()) * norms.positions[name] ** 0.5
        carried = carried * norms.step[name]

    def share(redundancy: Redundancy) -> Callable[[Tensor], float]:
        factor = max(after[reader.name] for reader in redundancy.group.readers) / scale
        return lambda kept: factor * redundancy.lost(kept)[0] ** 0.5

    return {name: share(redundancy) for name, redundancy in redundancies.items()}


def _rounded(count: int, most: int, to: int) -> int:
    return min(most, -(-count // to) * to)


def _limit(keep: Budget, model: nn.Module, data: Calibration) -> tuple[str, float]:
    """What is measured, and how much of it there may be."""
    what, value = next((k, v) for k, v in vars(keep).items() if k != "batch" and v is not None)
    share = value <= 1 and what != "latency_ms"
    return what, value * _measure(what, model, data) if share else value


def _measure(what: str, model: nn.Module, data: Calibration) -> float:
    if what == "parameters":
        return float(sum(p.numel() for p in model.parameters()))
    if what == "bytes":
        tensors = [value for value in model.state_dict().values() if isinstance(value, Tensor)]  # or extra states
        tensors = [tensor.detach() for tensor in tensors if tensor.layout is torch.strided]
        sizes = {(tensor.data_ptr(), tensor.numel()): tensor.element_size() for tensor in tensors}  # tied ones once
        return float(sum(count * size for (_, count), size in sizes.items()))
    return float(sum(layer_macs(model, data[:1]).values()))


def _layer_parameters(model: nn.Module) -> dict[str, int]:
    return {name: numbers_of(module) for name, module in model.named_modules() if has_units(module)}
