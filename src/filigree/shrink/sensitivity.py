"""What each setting costs and saves alone, and in which order settings are best taken together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from filigree.calibration import Calibration
from filigree.compress import OneShot
from filigree.compress.passes import shown
from filigree.compress.pruning.errors import OutputError
from filigree.compress.pruning.graph import Units
from filigree.compress.pruning.removable import removable
from filigree.config import listed, one_line
from filigree.measure.cost import stored
from filigree.nn.integer.empty_integer_layers import has_integer_form
from filigree.nn.resizing import has_units
from filigree.nn.structured.low_rank import LowRank
from filigree.shrink.plans import FORMS, SMALLER, UNITS, Form, Plan, Setting, Slot, fitted, pruning, rounded, stand_in
from filigree.shrink.speed import LayerClock

Built = Callable[[Mapping[str, float]], nn.Module]

PAYS = 0.98  # of the time of the layers it changes: settings that take more are left out
SHARE = 0.02  # of a network's time: layers that take less are left alone
SECONDS_OF_FIT = 1.5e-10  # of a cubed input: the connections of a layer with 8,192 took about 80 on a core of Zen 5
LEAST = 0.005  # of the cost: steps that save less are not taken


@dataclass(frozen=True)
class Effect:
    """What one setting does alone: the square of the outputs' error, the time of each layer over what it was, and the
    bytes on disk over what they were; `units` is how many the layer makes, of a setting of units."""

    slot: Slot
    setting: Setting
    error: float
    times: Mapping[str, float]
    bytes: float
    units: int = 0


def unit_effects(
    model: nn.Module, names: Sequence[str], data: Calibration, error_of: OutputError, clock: LayerClock,
    until: float, progress: bool | None, smaller: bool,
) -> tuple[list[Effect], list[str]]:  # fmt: skip
    """What fewer units of each group do, and lines about those that stay.

    The time that half of them take is measured; what other shares save is in proportion.
    """
    makers = [name for name in names if has_units(model.get_submodule(name))]
    if not makers:
        return [], []
    try:
        groups, left, built = _candidates(model, makers, data)
    except ValueError as failed:
        return [], [f"units stay: {one_line(failed).removeprefix('shrink: ')}"]
    notes = [f"units of {name} stay: {reason}" for name, reason in left.items()]
    size, late = stored(model).bytes_disk, list[str]()
    effects: list[Effect] = []
    for group in shown(groups, "units", progress):
        if effects and time.monotonic() > until:
            late.append(group.name)
            continue
        try:
            ratios = clock.ratios(half := built({group.name: 0.5}))
            halved = 1 - stored(half).bytes_disk / size
            if rounded(0.5, group.count) == 1 or not (_pays(clock, ratios) or smaller):
                continue
            for share in dict.fromkeys(rounded(share, group.count) for share in UNITS):
                if share < 1:
                    gone = (1 - share) / (1 - rounded(0.5, group.count))
                    times = {name: max(0.02, 1 - gone * (1 - ratio)) for name, ratio in ratios.items()}
                    error = error_of(built({group.name: share})) ** 2
                    effects.append(
                        Effect(Slot("units", group.name), share, error, times, 1 - gone * halved, group.count)
                    )
        except (ValueError, RuntimeError) as failed:
            notes.append(f"units of {group.name} stay: {one_line(failed, 120)}")
    return effects, notes + ([f"no time was left for the units of {listed(late)}"] if late else [])


def _candidates(model: nn.Module, makers: list[str], data: Calibration) -> tuple[list[Units], dict[str, str], Built]:
    try:
        return pruning().candidates(model, makers, data)
    except ValueError:  # some of the layers that were named cannot be pruned: the others
        groups, left = removable(model, makers, data[:8], "shrink", True)
        able = [name for group in groups for name in group.makers if name in makers]
        groups, _, built = pruning().candidates(model, able, data)
        return groups, left, built


def form_effects(
    model: nn.Module, names: Sequence[str], method: str, data: Calibration, error_of: OutputError, clock: LayerClock,
    until: float, progress: bool | None, smaller: bool,
) -> tuple[list[Effect], list[str]]:  # fmt: skip
    """What the forms of a method do to each layer, and lines about those that stay. Time is measured first: what does
    not pay is fitted to nothing."""
    forms = (*FORMS[method], *(SMALLER if method == "bits" and smaller else ()))
    size, notes, late = stored(model).bytes_disk, list[str](), list[str]()
    effects: list[Effect] = []
    total = sum(clock.before.values())
    for name in shown(names, method, progress):
        able = [form for form in forms if _takes(model.get_submodule(name), form)]
        if not smaller and clock.before[name] < SHARE * total:
            continue
        for form in able:
            if effects and time.monotonic() > until:
                late.append(name)
                break
            try:
                quick = stand_in(model, name, form)
                ratios, share = clock.ratios(quick), stored(quick).bytes_disk / size
                if not (_pays(clock, ratios) or (smaller and share < 1)):
                    break
                if time.monotonic() + _seconds_of_fit(model.get_submodule(name), form) > until:
                    late.append(name)
                    break
                network = fitted(model, {Slot("weights", name): form}, data)
                error, share = error_of(network) ** 2, stored(network).bytes_disk / size
                effects.append(Effect(Slot("weights", name), form, error, ratios, share))
            except (ValueError, RuntimeError) as failed:
                notes.append(f"{method} of {name} stay: {one_line(failed, 120)}")
                break
    return effects, notes + ([f"no time was left for all {method} of {listed(late)}"] if late else [])


def _seconds_of_fit(layer: nn.Module, form: Form) -> float:
    """About how long it takes to fit a form to data: by the cube of the inputs of an output."""
    weights = [weight for weight in layer.parameters() if weight.dim() > 1]
    inputs = max((weight[0].numel() for weight in weights), default=0)
    return SECONDS_OF_FIT * inputs**3 if form.bits is None else 0.0


def _pays(clock: LayerClock, ratios: Mapping[str, float]) -> bool:
    before = sum(clock.before[name] for name in ratios)
    return sum(clock.before[name] * ratio for name, ratio in ratios.items()) < PAYS * before


def _takes(layer: nn.Module, form: Form) -> bool:
    if form.rank is not None:
        config = LowRank(rank=float(form.rank))
        return config.accepts(layer) and config.gains(layer)
    return has_integer_form(layer) if form.bits is not None else OneShot().accepts(layer)


def path_of(
    effects: Sequence[Effect], clock: Mapping[str, float], smaller: bool, start: Plan | None = None
) -> list[Plan]:
    """Plans from the network as it is (or from `start`) on, each a step further where the least error buys the most.

    Errors (squared) are taken to add up, times of layers and bytes to be multiplied. The price of a step is the error
    over the share of the time that it saves (and of the bytes, where these count).
    """
    by_slot: dict[Slot, dict[Setting, Effect]] = {}
    for effect in effects:
        by_slot.setdefault(effect.slot, {})[effect.setting] = effect
    state: dict[Slot, Setting] = dict(start or {})
    total = sum(clock.values())
    plans: list[Plan] = [dict(state)]

    def cost(plan: Plan) -> float:
        times, size = dict(clock), 1.0
        for slot, setting in plan.items():
            effect = by_slot.get(slot, {}).get(setting)
            if effect is not None:
                for name, ratio in effect.times.items():
                    times[name] *= ratio
                size *= effect.bytes
        return sum(times.values()) / total + (size if smaller else 0.0)

    def lost(slot: Slot, setting: Setting | None) -> float:
        effect = by_slot[slot].get(setting) if setting is not None else None
        return 0.0 if effect is None else effect.error

    while True:
        now = cost(state)
        prices: list[tuple[float, Slot, Setting]] = []
        for slot, settings in by_slot.items():
            for setting in settings:
                saved = now - cost(state | {slot: setting})
                if saved > LEAST:
                    price = (lost(slot, setting) - lost(slot, state.get(slot))) / saved
                    prices.append((price, slot, setting))
        if not prices:
            return plans
        _, slot, setting = min(prices, key=lambda each: each[0])
        state[slot] = setting
        plans.append(dict(state))
