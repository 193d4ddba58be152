"""What each setting costs and saves alone, and in which order settings are best taken together."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from filigree.calibration import Calibration
from filigree.compress.passes import shown
from filigree.compress.pruning.errors import OutputError
from filigree.compress.pruning.removable import removable
from filigree.config import one_line
from filigree.measure.cost import stored
from filigree.nn.integer.empty_integer_layers import has_integer_form
from filigree.nn.resizing import has_units
from filigree.nn.structured.low_rank import LowRank
from filigree.shrink.plans import FORMS, SMALLER, UNITS, Form, Plan, Setting, Slot, fitted, method_of
from filigree.shrink.speed import LayerClock

PAYS = 0.98  # of the time of the layers it changes: settings that take more are left out
SHARE = 0.005  # of a network's time: layers that take less are left alone


@dataclass(frozen=True)
class Effect:
    """What one setting does alone: the square of the outputs' error, the time of each layer over what it was, and the
    bytes on disk over what they were."""

    slot: Slot
    setting: Setting
    error: float
    times: Mapping[str, float]
    bytes: float


def slots_of(
    model: nn.Module, names: Sequence[str], methods: Collection[str], data: Calibration, smaller: bool
) -> tuple[list[tuple[Slot, Setting]], list[str]]:
    """All that is tried alone, the quickest and most telling first, and lines about what cannot be done."""
    notes: list[str] = []
    tries: list[tuple[float, Slot, Setting]] = []
    if "units" in methods and (makers := [name for name in names if has_units(model.get_submodule(name))]):
        try:
            groups, left = removable(model, makers, data[:8], "shrink", True)
        except ValueError as error:
            groups, left = [], {}
            notes.append(f"units stay: {one_line(error).removeprefix('shrink: ')}")
        notes += [f"units of {name} stay: {reason}" for name, reason in left.items()]
        shares = {group.name: group.count for group in groups}
        for rank, share in enumerate(UNITS):
            tries += [(2.0 * rank, Slot("units", name), share) for name, count in shares.items() if count * share >= 1]
    for method in methods:
        forms = (*FORMS.get(method, ()), *(SMALLER if method == "bits" and smaller else ()))
        for rank, form in enumerate(forms):
            late = {"bits": 0.0, "ranks": 1.0, "connections": 3.0}[method]
            takers = [name for name in names if _takes(model.get_submodule(name), form)]
            tries += [(2.0 * rank + late, Slot("weights", name), form) for name in takers]
    return [(slot, setting) for _, slot, setting in sorted(tries, key=lambda each: each[0])], notes


def _takes(layer: nn.Module, form: Form) -> bool:
    if form.rank is not None:
        config = LowRank(rank=float(form.rank))
        return config.accepts(layer) and config.gains(layer)
    return has_integer_form(layer) if form.bits is not None else True


def effects_of(
    model: nn.Module, tries: Sequence[tuple[Slot, Setting]], data: Calibration, held: Calibration, clock: LayerClock,
    until: float, progress: bool | None, smaller: bool,
) -> tuple[list[Effect], list[str]]:  # fmt: skip
    """What each setting does alone, as many as there is time for, and lines about the others."""
    error_of, size = OutputError.of(model, held), stored(model).bytes_disk
    effects: list[Effect] = []
    notes: dict[str, str] = {}
    late = 0
    for slot, setting in shown(tries, "sensitivities", progress):
        if effects and time.monotonic() > until:
            late += 1
            continue
        try:
            network = fitted(model, {slot: setting}, data)
            times, error = clock.ratios(network), error_of(network)
        except (ValueError, RuntimeError) as failed:
            reason = f"{method_of(setting)} of {slot.layer or 'the model'} stay: {one_line(failed, 120)}"
            notes.setdefault(f"{slot} {method_of(setting)}", reason)
            continue
        before = sum(clock.before[name] for name in times)
        after = sum(clock.before[name] * ratio for name, ratio in times.items())
        bytes_share = stored(network).bytes_disk / size
        if after < PAYS * before or (smaller and bytes_share < 1):
            effects.append(Effect(slot, setting, error**2, times, bytes_share))
    if late:
        notes["late"] = f"{late} of {len(tries)} settings were not tried: there was no time left"
    return effects, list(notes.values())


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
                if saved > SHARE:
                    price = (lost(slot, setting) - lost(slot, state.get(slot))) / saved
                    prices.append((price, slot, setting))
        if not prices:
            return plans
        _, slot, setting = min(prices, key=lambda each: each[0])
        state[slot] = setting
        plans.append(dict(state))
