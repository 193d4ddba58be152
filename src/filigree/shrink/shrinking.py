"""The verb `shrink`: the fastest network that keeps a share of a metric."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from filigree.calibration import Forward
from filigree.compress import OneShot
from filigree.compress.passes import shown
from filigree.compress.pruning.errors import OutputError
from filigree.computed_weights import copied
from filigree.config import check_choice, one_line
from filigree.laid_out import restore_, runtimes_of
from filigree.layer_selection import Where, matching
from filigree.measure.cost import stored
from filigree.nn.resizing import has_units
from filigree.shrink.metrics import Judge, least_of
from filigree.shrink.plans import METHODS, Plan, Setting, Slot, between, described, fitted, frozen, method_of, rounded
from filigree.shrink.samples import Samples
from filigree.shrink.sensitivity import Effect, form_effects, path_of, unit_effects
from filigree.shrink.shrunk import ALL, SAME, Attempt, Shrunk
from filigree.shrink.speed import EXACT, LayerClock, LayoutOptions, calls_of, laid_out_, timings

ORIGINAL = "original"
JUDGED = 64  # held-out samples on which single settings are tried, at most
SAMPLES = 32  # the most that layers are timed on alone; networks are timed on whole batches
HALVINGS = 2  # of the step that went too far
TOLERANCES = (0.5, 0.3, 0.2, 0.14, 0.1, 0.07, 0.05, 0.035, 0.025, 0.01)  # of layouts in int8
SHARES_OF_TIME = {"units": 0.22, "bits": 0.27, "ranks": 0.37, "connections": 0.5}  # up to the end of each method's
ROUNDS = 3  # how often the search goes on without the step that went too far


def shrink(
    model: nn.Module, data: Any = None, metric: Any = None, keep: float = 0.99, latency_ms: float | None = None,
    bytes: int | None = None, *, batch: int = 1, validation: Any = None, forward: Forward | None = None,
    where: Where = None, methods: Collection[str] = METHODS, samples: int = 2000, seconds: float = 300.0,
    seed: int = 0, progress: bool | None = None,
) -> Shrunk:  # fmt: skip
    """Return the fastest network that keeps a share of a metric, as measured on this machine. The model is unchanged.

        small = fg.shrink(model, (x, y))          # 99% of the accuracy
        print(small)                              # what was tried, and how much faster the winner is
        fg.save(small.model, "small.safetensors")

    Layer by layer it measures what fewer units (`fg.SubsetPruning`), fewer connections (`fg.OneShot`), a lower rank
    (`fg.LowRank`, fitted) and fewer bits (`fg.RoundToNearest`, `fg.OneShot`) do to the outputs on held-out data, and
    what time they save in the fastest layout (`fg.optimize_`, in int8 where that keeps the metric). Settings are
    combined where the least error buys the most time; how far that goes is searched for on the metric of the whole
    network, with all methods together and with each method alone. The fastest in a last measurement in turns wins; the
    best of each method alone takes part in it.

    Args:
        model: any torch module; a copy of it is searched, in evaluation mode.
        data: as of `fg.compress_`: inputs, a pair of inputs and targets, an object with `.x` and `.y`, a mapping of
            the model's arguments (or a pair of one and targets), or batches of these. A quarter is held out.
        metric: what is kept, the higher the better. A function `(model) -> float`, on data of your own, which is
            called with gradients disabled; a function
            `(outputs, targets) -> float` (the original's outputs where there are no targets); "accuracy"; "agreement",
            the share of the original's decisions, of the first output; "r2", `1 - |Y' - Y|^2 / |Y - mean Y|^2`, Y the
            targets or (the worst of) the original's outputs. None: "accuracy" where targets are classes, "r2" where
            they are numbers, and without targets "agreement" where outputs are probabilities, else "r2".
        keep: the share of the original's metric, up to 1.
        latency_ms, bytes: limits of a batch's time and of the file's size. With a latency the network with the best
            metric within it is returned, not the fastest.
        batch: samples that are timed at once.
        validation: data as `data` to judge by; None: a quarter of the data.
        forward: how the model runs on a batch, as of `fg.compress_`; such a model is timed as it is, not laid out.
        where: which layers may change, as of `fg.compress_`. methods: some of "units", "bits" (and int8 layouts),
            "ranks", "connections".
        samples: of the data, at most, drawn. seconds: after which nothing more is tried; a step may take longer.
        seed: of the samples that are drawn and held out. progress: whether a bar is shown; None: on a terminal.

    Returns:
        A printable report with `.model`. Where nothing is faster, or nothing meets what is asked, the report says so;
        the model is then the original's copy, or the network that keeps the metric and comes closest.

    Raises:
        ValueError: the data are too few or do not run, an argument is out of range, the metric of the original is not
            finite. TypeError: a metric that is none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"shrink: model must be a torch module. Got a {type(model).__name__}.")
    for name, value in {"keep": keep, "latency_ms": latency_ms, "bytes": bytes, "seconds": seconds}.items():
        if value is not None and not (value > 0 and (name != "keep" or value <= 1)):
            raise ValueError(f"shrink: {name} must be above 0{', up to 1' if name == 'keep' else ''}. Got {value!r}.")
    for name, number in (("batch", batch), ("samples", samples)):
        if number < 1:
            raise ValueError(f"shrink: {name} must be at least 1. Got {number!r}.")
    if isinstance(methods, str) or not methods:
        raise ValueError(f"shrink: methods must be some of {', '.join(METHODS)}. Got {methods!r}.")
    for method in methods:
        check_choice("shrink", "methods", method, METHODS)
    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise ValueError(f"shrink: the model must have weights. {empty[0]!r} is on the meta device.")
    whole = Samples.of(data, forward, samples, model, seed)
    fit, held = (
        (whole, Samples.of(validation, forward, samples, model, seed)) if validation is not None else whole.split(seed)
    )
    original = copied(model).eval()
    restore_(original)
    search = _Search(original, fit, held, metric, keep, latency_ms, bytes, batch, seconds, progress)
    return search.run(where, [method for method in METHODS if method in methods])


@dataclass
class _Candidate:
    """A network that was built, what it measured, and of which plan it is."""

    attempt: Attempt
    network: nn.Module | None
    plan: Plan = field(default_factory=dict)


class _Search:
    """The state of a search."""

    def __init__(
        self, original: nn.Module, fit: Samples, held: Samples, metric: Any, keep: float, latency_ms: float | None,
        most_bytes: int | None, batch: int, seconds: float, progress: bool | None,
    ) -> None:  # fmt: skip
        self.began = time.monotonic()
        self.until = self.ends = self.began + seconds  # of the present part, of the whole
        self.progress, self.late = progress, False
        self.seconds = seconds
        self.original, self.fit, self.held = original, fit, held
        self.latency_ms, self.most_bytes, self.batch = latency_ms, most_bytes, batch
        self.judge = Judge(metric, original, held)
        value = self.judge(original)
        self.whole, self.least = value, least_of(value, keep)
        if not value - value == 0:
            raise ValueError(f"shrink: the metric of the original must be finite. Got {value!r}.")
        self.example = fit.example(batch, original)
        self.ms = timings([original], self.example, 0.1)[0].median
        as_it_was = Attempt(ORIGINAL, "as it was", value, self.ms, stored(original).bytes_disk, True)
        self.known: dict[frozenset[tuple[Slot, Setting]], _Candidate] = {}
        self.candidates = [_Candidate(as_it_was, original)]
        self.notes: list[str] = []
        self.spent: dict[str, float] = {}
        self.layout = EXACT
        exact = copied(original)
        reason, _ = laid_out_(exact, self.example)
        if reason:
            self.notes.append(f"layout: {reason}")
        self.reference = as_it_was, original  # with which others are timed in turns
        if runtimes_of(exact):
            self.reference = self._add({}, "layout", exact, EXACT).attempt, exact

    # -- networks that are tried ---------------------------------------------------------------------------------------

    def _add(self, plan: Plan, method: str, network: nn.Module, layout: LayoutOptions) -> _Candidate:
        known, reference = self.reference
        before, after = timings([reference, network], self.example, 0.03)
        value = self.judge(network)
        what = "; ".join(filter(None, [described(plan) if plan else "laid out", layout.described()]))
        size, holds = stored(network).bytes_disk, value >= self.least
        ms = known.ms * after.low / before.low
        attempt = Attempt(method, what, value, ms, size, holds, layout.tolerance, layout.floats)
        candidate = _Candidate(attempt, network, plan)
        self.known[frozen(plan)] = candidate
        self.candidates.append(candidate)
        if not holds:
            candidate.network = None
        else:
            self._forget()
        return candidate

    def _forget(self) -> None:
        """Keep only those networks that may still win."""
        kept = self._best(6)
        for candidate in self.candidates[1:]:
            if not any(candidate is other for other in kept):
                candidate.network = None

    def _best(self, count: int) -> list[_Candidate]:
        """So many networks, the best first, and the best one of each method behind them."""
        ranked = sorted((c for c in self.candidates[1:] if c.network is not None), key=self._rank)
        kinds = {(c.attempt.method, c.attempt.is_alone) for c in ranked[:count]}
        others = {(c.attempt.method, c.attempt.is_alone): c for c in reversed(ranked[count:])}
        return ranked[:count] + [candidate for kind, candidate in others.items() if kind not in kinds]

    def _try_int8(self) -> None:
        """The fastest layout in int8 that keeps the metric; where it is faster than floats all is laid out so."""
        fastest = min(candidate.attempt.ms for candidate in self.candidates)
        share = SHARES_OF_TIME["bits"] * self.seconds
        first, layers = self._in_int8(LayoutOptions(TOLERANCES[0]))
        candidate = first
        for tolerance in TOLERANCES[1:]:
            if candidate is None or candidate.attempt.holds or time.monotonic() > self.began + share / 2:
                break
            candidate, _ = self._in_int8(LayoutOptions(tolerance))
        if first is not None and not first.attempt.holds:
            self._leave_in_floats(layers, self.began + share)
        tried = [c for c in self.candidates if c.attempt.method == "bits" and c.attempt.holds]
        if tried:
            best = self.known[frozen({})] = min(tried, key=lambda c: c.attempt.ms)
            self.layout = best.attempt.layout if best.attempt.ms < (1 - SAME) * fastest else EXACT

    def _leave_in_floats(self, layers: list[str], until: float) -> None:
        """Of the layers in int8 more and more are floats again, until the metric holds; those first without which alone
        most of it is kept."""
        kept: dict[str, float] = {}
        holds = False
        for name in layers:
            if time.monotonic() > until:
                break
            candidate, _ = self._in_int8(LayoutOptions(TOLERANCES[0], (name,)))
            kept[name] = candidate.attempt.metric if candidate is not None else self.whole
            holds |= candidate is not None and candidate.attempt.holds
        order = sorted(kept, key=lambda name: -kept[name])
        for count in range(2, len(order)):
            if holds or time.monotonic() > until:
                break
            candidate, _ = self._in_int8(LayoutOptions(TOLERANCES[0], tuple(order[:count])))
            holds = candidate is None or candidate.attempt.holds

    def _in_int8(self, layout: LayoutOptions) -> tuple[_Candidate | None, list[str]]:
        """The original in a layout, None where none of its layers is in int8; those, the largest error first."""
        _, layers = laid_out_(network := copied(self.original), self.example, layout=layout)
        return (self._add({}, "bits", network, layout) if layers and runtimes_of(network) else None), layers

    def _tried(self, plan: Plan, method: str) -> _Candidate | None:
        """The network of a plan, which is built if it is not known; None where it cannot be, or there is no time."""
        if (known := self.known.get(frozen(plan))) is not None:
            return known
        if time.monotonic() > self.until:
            self.late = True
            return None
        try:
            network = fitted(self.original, plan, self.fit.inputs)
            laid_out_(network, self.example, layout=self.layout)
            candidate = self._add(plan, method, network, self.layout)
            if candidate.attempt.holds or self.layout == EXACT:
                return candidate
            restore_(network)  # exact, where it was int8 that lost too much
            if self.judge(network) >= self.least:
                laid_out_(network, self.example)
                candidate = self._add(plan, method, network, EXACT)
            return candidate
        except (ValueError, RuntimeError) as error:
            self.notes.append(f"{method}: {described(plan)}: {one_line(error, 120)}")
            return None

    def _within(self, attempt: Attempt) -> bool:
        return (self.latency_ms is None or attempt.ms <= self.latency_ms) and (
            self.most_bytes is None or attempt.bytes <= self.most_bytes
        )

    def _rank(self, candidate: _Candidate) -> tuple[Any, ...]:
        """The best first: what keeps the metric, within the limits; then the best metric, or the fastest."""
        attempt = candidate.attempt
        beyond = max(
            0.0 if self.latency_ms is None else attempt.ms / self.latency_ms - 1,
            0.0 if self.most_bytes is None else attempt.bytes / self.most_bytes - 1,
            0.0,
        )
        by = (-attempt.metric, attempt.ms) if self.latency_ms is not None else (attempt.ms, -attempt.metric)
        return (not attempt.holds, beyond, *by)

    # -- the search ----------------------------------------------------------------------------------------------------

    def run(self, where: Where, methods: list[str]) -> Shrunk:
        accepts = OneShot().accepts
        able = {name: module for name, module in self.original.named_modules() if accepts(module) or has_units(module)}
        names = matching(able, where, "shrink", "layer that can be shrunk") if able or where is not None else []
        calls, left = calls_of(self.original, [name for name in names if name], self.example)
        names = list(calls)
        self.notes += left
        if not names:
            self.notes.append("the model has no layers that can be shrunk")
            return self._result()
        smaller = self.most_bytes is not None
        if "bits" in methods:
            began = time.monotonic()
            self._try_int8()
            self._spend("bits", began)
        some = self.fit.example(min(self.batch, SAMPLES), self.original)
        clock = LayerClock(self.original, calls, some, self.layout)
        effects = self._effects(names, methods, clock, smaller)
        present = [method for method in methods if any(method_of(effect.setting) == method for effect in effects)]
        searches = [(ALL, effects)] if len(present) > 1 else []
        searches += [(method, [e for e in effects if method_of(e.setting) == method]) for method in present]
        parts = [2 if method == ALL else 1 for method, _ in searches] + [int(len(present) > 1)]  # of the time
        for number, (method, some) in enumerate(shown(searches, "search", self.progress)):
            began = time.monotonic()
            self.until = began + (self.ends - began) * parts[number] / sum(parts[number:])
            self._follow(method, some, clock.before, smaller)
            self._spend(method, began)
        self.until = self.ends
        if len(present) > 1:
            began = time.monotonic()
            self._go_on(effects, clock.before, smaller)
            self._spend(ALL, began)
        if self.late:
            self.notes.append(f"{self.seconds:.3g} seconds were too few to search to the end")
        return self._result()

    def _effects(self, names: list[str], methods: list[str], clock: LayerClock, smaller: bool) -> list[Effect]:
        """What each setting does alone; half of the time is for that."""
        model, data, left = self.original, self.fit.inputs, self.ends - time.monotonic()
        error_of = OutputError.of(model, self.held.inputs.some(JUDGED, 0))
        names = sorted(names, key=lambda name: -clock.before[name])
        effects: list[Effect] = []
        for method in methods:
            began, until = time.monotonic(), self.ends - left * (1 - SHARES_OF_TIME[method])
            if method == "units":
                some, notes = unit_effects(model, names, data, error_of, clock, until, self.progress, smaller)
            else:
                some, notes = form_effects(model, names, method, data, error_of, clock, until, self.progress, smaller)
            effects += some
            self.notes += notes
            self._spend(method, began)
        return effects

    def _spend(self, method: str, began: float) -> None:
        self.spent[method] = self.spent.get(method, 0.0) + time.monotonic() - began

    def _go_on(self, effects: list[Effect], clock: dict[str, float], smaller: bool) -> None:
        """On with all methods from the best network of one method, where that is better than those of all together."""
        best = min((c for c in self.candidates[1:] if c.attempt.holds), key=self._rank, default=None)
        if best is None or not best.plan or best.attempt.method == ALL:
            return
        known = {(effect.slot, effect.setting) for effect in effects}
        settled = {slot for slot, setting in best.plan.items() if (slot, setting) not in known}  # half-way to another
        self._follow(ALL, [effect for effect in effects if effect.slot not in settled], clock, smaller, best.plan)

    def _follow(
        self, method: str, effects: list[Effect], clock: dict[str, float], smaller: bool, start: Plan | None = None
    ) -> None:
        """Go as far on the path as the metric allows; then on from there, without the step that went too far."""
        state: Plan = start or {}
        units_of_slot = {effect.slot: effect.units for effect in effects}
        for _ in range(ROUNDS):
            plans = path_of(effects, clock, smaller, state)
            errors = {(effect.slot, effect.setting): effect.error for effect in effects}
            last, beyond = self._search(method, plans, [sum(errors.get(s, 0.0) for s in p.items()) for p in plans])
            if beyond is None:
                return
            state = plans[last]
            (slot,) = [slot for slot, setting in beyond.items() if state.get(slot) != setting]
            far = beyond[slot]
            near = state.get(slot)
            for _ in range(HALVINGS):
                middle = between(near, far)
                if isinstance(middle, float):
                    middle = rounded(middle, units_of_slot[slot])
                if middle in (near, far, 1.0):
                    break
                candidate = None if middle is None else self._tried({**state, slot: middle}, method)
                if candidate is None or middle is None:
                    break
                if self._goes_on(candidate):
                    near, state = middle, {**state, slot: middle}
                else:
                    far = middle
            failed = next(effect for effect in effects if (effect.slot, effect.setting) == (slot, beyond[slot]))
            effects = [effect for effect in effects if effect.slot != slot or effect.error < failed.error]
            reached = state.get(slot)
            if reached is not None and all((e.slot, e.setting) != (slot, reached) for e in effects):
                effects.append(replace(failed, setting=reached))

    def _goes_on(self, candidate: _Candidate) -> bool:
        """Whether the search may go further from there: up to the limits where a latency is asked for, else as far as
        the metric holds."""
        if self.latency_ms is not None:
            return not self._within(candidate.attempt)
        return candidate.attempt.holds

    def _search(self, method: str, plans: list[Plan], errors: list[float]) -> tuple[int, Plan | None]:
        """The number of the last plan from which the search goes on, and the next one, None where there is none.

        The middle is tried, and then, where a plan has lost too much, the one whose error, in proportion to that, would
        lose just what may be; at least a quarter of the way from what is known.
        """
        low, high, guess = 0, len(plans), None
        while high - low > 1:
            quarter = (high - low) // 4
            middle = (low + high) // 2 if guess is None else max(guess, low + quarter, low + 1)
            middle = min(middle, max(high - quarter - 1, low + 1))
            candidate = self._tried(plans[middle], method)
            if candidate is None and time.monotonic() > self.until:
                return low, None
            if candidate is not None and self._goes_on(candidate):
                low = middle
            else:
                high = middle
                lost = self.whole - candidate.attempt.metric if candidate is not None else 0.0
                if self.latency_ms is None and lost > 0:
                    allowed = errors[middle] * (self.whole - self.least) / lost
                    guess = max((n for n in range(high) if errors[n] <= allowed), default=0)
        return low, plans[high] if high < len(plans) else None

    # -- the winner ----------------------------------------------------------------------------------------------------

    def _result(self) -> Shrunk:
        finalists = [self.candidates[0], *self._best(5)]
        times = timings([c.network for c in finalists if c.network is not None], self.example, 0.3)
        drift = times[0].median / self.ms  # of the machine, since the others were measured
        for candidate in self.candidates:
            candidate.attempt = replace(candidate.attempt, ms=candidate.attempt.ms * drift)
        for candidate, timing in zip(finalists, times, strict=True):
            candidate.attempt = replace(candidate.attempt, ms=timing.median)
        original, *others = finalists
        limited = self.latency_ms is not None or self.most_bytes is not None
        faster = [c for c in others if c.attempt.ms < (1 - SAME) * original.attempt.ms or limited]
        winner = min([original, *faster], key=self._rank)
        if not limited:  # of those that are as fast the one to which least was done
            as_fast = (c for c in faster if c.attempt.holds and c.attempt.ms <= (1 + SAME) * winner.attempt.ms)
            winner = min(as_fast, key=lambda c: (len(c.plan), *self._rank(c)), default=winner)
        network = winner.network
        assert network is not None
        ranked = sorted(others, key=self._rank, reverse=True)
        alone = {c.attempt.method: (c.attempt, c.network) for c in ranked if c.network and c.attempt.is_alone}
        met = winner.attempt.holds and self._within(winner.attempt)
        return Shrunk(
            network, original.attempt, winner.attempt, [c.attempt for c in self.candidates], self.judge.name,
            self.least, len(self.held), self.batch, met, time.monotonic() - self.began, self.notes, self.spent, alone,
        )  # fmt: skip
