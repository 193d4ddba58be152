"""Evolution: sparse layers rewired while they train (SET and its variants; RigL)."""

from __future__ import annotations

import functools
import math
import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from filigree.dynamics.consistency import check_rewired, gathered
from filigree.dynamics.data_parallel import follow_new_sizes
from filigree.dynamics.density import (
    Allocation,
    DensitySchedule,
    as_density,
    connections_at,
    possible_connections,
)
from filigree.dynamics.horizon import horizon_of
from filigree.dynamics.last_gradients import LastGradients
from filigree.dynamics.link_prediction import SCORES
from filigree.dynamics.optimizer_state import Kept, Reset, check_holds, find_state
from filigree.dynamics.rewire import (
    gradient_growth,
    largest,
    largest_growth,
    random_growth,
    scored_growth,
    soft_survivors,
    survivors,
)
from filigree.dynamics.rewiring import Follower, Rewiring
from filigree.dynamics.schedules import Adaptive, Schedule, as_schedule
from filigree.layer_selection import Where, matching
from filigree.topology.flat_indices import merge, moved, positions
from filigree.topology.shards import Whole, part_of
from filigree.untrained import mark_untrained
from filigree.wrappers import check_module


@runtime_checkable
class Evolvable(Protocol):
    """What a sparse layer offers to be rewired; see `filigree.nn.SparseLinear`."""

    in_features: int
    out_features: int

    @property
    def connections(self) -> nn.Parameter: ...
    def flat_indices(self) -> Tensor: ...
    def weights(self) -> Tensor: ...
    def rewire_(self, flat_indices: Tensor, weights: Tensor) -> None: ...
    def permute_optimizer_state_(self, state: Tensor, source: Tensor) -> None: ...


class Evolution:
    """Remove the weakest connections and grow as many new ones, step by step, like a torch `lr_scheduler`.

    After epoch i each sparse layer loses the fraction `zeta_i` of its smallest positive and of its largest negative
    weights and every exact zero, and gains as many connections where there are none. The number of connections changes
    with `density` only, and the optimizer's state follows: it is permuted with the values, and at new connections zero
    (or what it starts with in Rprop and Adagrad). Layers whose weights are frozen (`requires_grad` is False) stay as
    they are.

    Args:
        model: holds sparse layers (after `fg.convert_`).
        optimizer: holds the weights of all layers that evolve. A list of several, or a wrapper that holds one in an
            attribute, will do; may be None. A state that does not go weight by weight (the history of LBFGS, the
            factors of Adafactor in masked layers) begins anew after each rewiring, with a warning.
        schedule: zeta: a `Schedule`, a number, or a callable `f(epoch) -> zeta`.
        epochs: the horizon: how often `step` will be called, the last call included, which rewires no more. `fg.fit`
            and the callbacks for trainers fill it in. In a loop of your own give it: without it the last call rewires
            too, and leaves connections that were never trained; schedules that need it are refused by name then.
        stop_before_end: how many epochs at the end are not followed by a rewiring (Chouliaras 2021, 3.5.1); at least 1.
        grow: "random" (SET); "gradient" (RigL: where the gradient of the last batch is largest; the dense gradient
            is formed block by block, at a rewiring only); "cht3" or "cht2" (CHT, CHTs: where most speaks for a
            connection among the paths of length 3 that remain, or among the units on them; see
            `filigree.dynamics.link_prediction`, also for what they cost; a rest that no path reaches is random).
        soft: None, or two exponents (CHTs: (1, 3)): what stays is drawn, with probabilities proportional to |w|^T, T
            going from the first to the second over the run, and so is what grows, to score or gradient, in place of
            the largest.
        density: a density schedule, `CubicDensity(0.1)` say, or the number at which a cubic one ends: the share of all
            possible connections of the layers that evolve. Layers first lose their smallest weights until they have
            no more connections than they are to have, then zeta takes its share of the rest, then they grow to what
            they are to have. With zeta = 0 it is gradual pruning (Zhu and Gupta 2017), or growth.
        allocate: whose connections these are: "layer" keeps the proportions among the layers that there are at the
            beginning (Erdos-Renyi-Kernel stays that), "erk" makes them those of `ErdosRenyiKernel` at each density,
            "global" keeps the largest weights of all layers together (and grows as "layer" does).
        regrow: the weight of a new connection: "zero", "initial" (drawn as at the start, N(0, 2 / fan-in)), or a
            number, the standard deviation of N(0, s^2).
        every: rewire at every n-th call of `step` only; the schedule counts rewirings.
        interval: when a trainer calls `step`: after each "epoch", or after each "step" of the optimizer, which `epochs`
            then counts.
        seed: of removal, growth and new weights.
        where: which sparse layers evolve, by default all: a predicate `(name, layer) -> bool`, or glob patterns on
            their names, as in `fg.convert_`.

    Of several data-parallel processes each calls `step` after the same update; all remove and grow the same
    connections, by gradient where it is largest over the samples of all. With FILIGREE_DEBUG=1 in the environment every
    rewiring is checked: see `check_rewired`. Layers that are sharded (`fg.shard_`) are rewired as whole layers are,
    with thresholds and numbers of connections over all rows; "cht3", "cht2" and `allocate="global"` need whole layers.

    Attributes:
        layers: by name those that evolve, as long as they are not frozen.
        epoch: rewirings due so far. rate: the zeta applied last. seconds: time spent in `step`, in seconds.
        births: for each layer the epoch in which each connection was grown (0: from the start).
        deaths: for each layer, rows (born, died, count) of the connections removed so far.

    Raises:
        ValueError: no sparse layers, or all frozen; an optimizer that does not hold the weights of one that evolves
            (made before `convert_`, or of others); at `step`, a schedule without its horizon or zeta outside [0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        schedule: Schedule | float | Callable[..., float],
        epochs: int | None = None,
        *,
        stop_before_end: int = 1,
        grow: Literal["random", "gradient", "cht3", "cht2"] = "random",
        regrow: Literal["zero", "initial"] | float = "zero",
        soft: tuple[float, float] | None = None,
        density: DensitySchedule | float | None = None,
        allocate: Allocation = "layer",
        every: int = 1,
        interval: Literal["epoch", "step"] = "epoch",
        seed: int = 0,
        where: Where = None,
    ) -> None:
        check_module(model, "Evolution")
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Evolvable)}
        if not layers:
            raise ValueError(
                "Evolution: the model has no sparse layers. Call fg.convert_(model, fg.Sparse(...)) first."
            )
        self.layers = {name: layers[name] for name in matching(layers, where, "Evolution", "sparse layer")}
        if not self._evolving():
            raise ValueError(
                "Evolution: at least one sparse layer must train. Frozen (requires_grad is False) are "
                f"{', '.join(self.layers)}."
            )
        self.optimizer, self.schedule = optimizer, as_schedule(schedule)
        check_holds(optimizer, self._evolving(), "Evolution")
        for label, number, least in (
            ("epochs", epochs, 1), ("every", every, 1), ("stop_before_end", stop_before_end, 1)
        ):  # fmt: skip
            if number is not None and number < least:
                raise ValueError(f"Evolution: {label} must be at least {least}. Got {number}.")
        if grow not in (growths := ("random", "gradient", *SCORES)):
            raise ValueError(f"Evolution: grow must be one of {', '.join(map(repr, growths))}. Got {grow!r}.")
        if allocate not in get_args(Allocation):
            raise ValueError(f"Evolution: allocate must be 'layer', 'global' or 'erk'. Got {allocate!r}.")
        if soft is not None and not (len(soft) == 2 and min(soft) > 0):
            raise ValueError(f"Evolution: soft must be two exponents above 0, the first and the last. Got {soft}.")
        if not (regrow in ("zero", "initial") or (isinstance(regrow, int | float) and regrow >= 0)):
            raise ValueError(f"Evolution: regrow must be 'zero', 'initial' or a number >= 0. Got {regrow!r}.")
        if interval not in ("epoch", "step"):
            raise ValueError(f"Evolution: interval must be 'epoch' or 'step'. Got {interval!r}.")
        self._refuse_of_shards(grow, allocate)
        self._gathers = all(part_of(module).processes == 1 for module in model.modules())  # else batches are the same
        self.epochs = self._given = epochs
        self.stop_before_end, self.grow, self.regrow = stop_before_end, grow, regrow
        self.every, self.interval, self.soft, self.allocate = every, interval, soft, allocate
        self.density = None if density is None else as_density(density)
        self.calls, self.epoch, self.rate, self.seconds = 0, 0, 0.0, 0.0
        self.generator = torch.Generator().manual_seed(seed)
        self.births = {
            name: torch.zeros(layer.flat_indices().numel(), dtype=torch.int32) for name, layer in self.layers.items()
        }
        self.deaths = {name: torch.zeros(0, 3, dtype=torch.int64) for name in self.layers}
        self._first = {name: self._connections(name) for name in self.layers}
        self._memory: dict[str, float] = {}
        self._followers: OrderedDict[int, Follower] = OrderedDict()
        self._warned = False
        self._checks = os.environ.get("FILIGREE_DEBUG") == "1"
        watched = self.layers if grow == "gradient" else {}
        self._watch = {name: LastGradients(name, layer) for name, layer in watched.items()}

    def set_horizon(self, calls: int) -> None:
        """A run begins, or goes on, in which `step` is called so many times. `ValueError`: `epochs` contradicts it."""
        self.epochs = horizon_of("Evolution", self._given, self.calls, calls)
        self._watch_while_needed()

    def on_rewire(self, callback: Callable[[Rewiring], Any]) -> RemovableHandle:
        """Have `callback(rewiring)` called after each rewiring, for each layer that was rewired: a `Rewiring`.

        What goes by the position of a weight follows there, for instance an average of your own:

            average = {name: p.detach().clone() for name, p in model.named_parameters()}
            evolution.on_rewire(lambda rewiring: rewiring.move_(average[rewiring.parameter]))

        All layers, the optimizer's state and the evolution's own are then those after the rewiring. Callbacks are not
        part of `state_dict`. The handle's `remove()` ends the calls.
        """
        handle = RemovableHandle(self._followers)
        self._followers[handle.id] = callback
        return handle

    def step(self, metrics: dict[str, Any] | None = None) -> None:
        """The end of an epoch: rewire at the schedule's rate. `metrics` is what `Adaptive` reads.

        Raises:
            ValueError: zeta outside [0, 1], a missing horizon, growth by gradient without a backward pass, an optimizer
                that does not hold the weights of a layer. Model, optimizer and evolution are then as they were.
        """
        began = time.perf_counter()
        is_due = (self.calls + 1) % self.every == 0
        layers, states, resets = dict[str, Evolvable](), list[list[Kept]](), list[Reset]()
        counts = dict[str, int]()
        if is_due:
            layers = self._evolving()
            memory = dict(self._memory)
            rate, counts = self._next_rate(metrics), self._next_counts(layers)
            if rate > 0 or self._resizes(counts):
                try:
                    states, resets = self._check(layers)
                except ValueError:
                    self._memory = memory
                    raise
            self.rate = rate
        self.calls += 1
        for watch in self._watch.values():
            watch.fresh = False
        if not is_due:
            return
        self.epoch += 1
        resizes = self._resizes(counts)
        if self.rate > 0 or resizes:
            rewirings = []
            for (name, layer), state in zip(layers.items(), states, strict=True):
                rewiring = self._rewire(name, layer, state, counts[name])
                if rewiring is not None and self._followers:
                    rewirings.append(rewiring)
                if self._checks:
                    check_rewired(name, layer, counts[name])
            self._reset(resets)
            if resizes:
                follow_new_sizes(layer.connections for layer in layers.values())
            for callback in list(self._followers.values()):
                for rewiring in rewirings:
                    callback(rewiring)
        self._watch_while_needed()
        self.seconds += time.perf_counter() - began

    def on_fit_end(self, state: Any) -> None:
        """A run ends, whose last call of `step` may be left out: layers have no hooks of ours until another begins."""
        for watch in self._watch.values():
            watch.watch(False)

    def _watch_while_needed(self) -> None:
        """After the last call layers have no hooks of ours, which would keep them from export to C and from chains."""
        for watch in self._watch.values():
            watch.watch(self.epochs is None or self.calls < self.epochs)

    def _evolving(self) -> dict[str, Evolvable]:
        return {name: layer for name, layer in self.layers.items() if layer.connections.requires_grad}

    def _refuse_of_shards(self, grow: str, allocate: str) -> None:
        sharded = [name for name, layer in self.layers.items() if part_of(layer).processes > 1]
        for label, value, needs in (("grow", grow, SCORES), ("allocate", allocate, ("global",))):
            if sharded and value in needs:
                raise ValueError(
                    f"Evolution: {label}={value!r} needs whole layers. {sharded[0]!r} is divided over processes: "
                    "leave it out by where=."
                )

    def _connections(self, name: str) -> int:
        """How many connections a layer has, in all processes."""
        return part_of(self.layers[name]).total(len(self.births[name]))

    def _check(self, layers: dict[str, Evolvable]) -> tuple[list[list[Kept]], list[Reset]]:
        """All that can be refused, before anything moves; and what the optimizer keeps of each layer's weights."""
        check_holds(self.optimizer, layers, "Evolution")
        for name, layer in layers.items():
            there, known = len(layer.weights()), len(self.births[name])
            if there != known:
                raise ValueError(
                    f"Evolution: layer {name!r} has {there} connections, and the evolution knows {known}: another "
                    "topology was loaded. Make the evolution after that, or load its state too."
                )
            if name in self._watch:
                self._watch[name].last()
        return find_state(self.optimizer, [layer.connections for layer in layers.values()])

    def _reset(self, resets: list[Reset]) -> None:
        for reset in resets:
            reset.state.clear()
        if resets and not self._warned:
            self._warned = True
            warnings.warn(
                f"Evolution: the state of {resets[0].optimizer} ({', '.join(resets[0].names)}) does not go connection "
                "by connection: it begins anew after each rewiring.",
                stacklevel=3,
            )

    @property
    def _rewirings(self) -> int | None:
        """Of the whole run; None as long as its horizon is not known."""
        return None if self.epochs is None else math.ceil(self.epochs / self.every)

    def _needs_horizon(self, who: Any) -> ValueError:
        return ValueError(f"Evolution: {type(who).__name__} needs the horizon. Give epochs=.")

    def _next_rate(self, metrics: dict[str, Any] | None) -> float:
        rewirings = self._rewirings
        if rewirings is None and self.schedule.needs_horizon:
            raise self._needs_horizon(self.schedule)
        if rewirings is None and self.soft is not None:
            raise ValueError("Evolution: soft needs the horizon. Give epochs=.")
        if rewirings is not None and self.epoch >= rewirings - self.stop_before_end:
            return 0.0
        memory = dict(self._memory)
        if isinstance(self.schedule, Adaptive):
            rate = self.schedule.follow(metrics, memory)
        else:
            rate = self.schedule.rate(self.epoch, rewirings)
        if not 0 <= rate <= 1:
            name = type(self.schedule).__name__
            raise ValueError(f"Evolution: zeta must be in [0, 1]. {name} gave {rate} at epoch {self.epoch}.")
        self._memory = memory
        return rate

    def _next_counts(self, layers: dict[str, Evolvable]) -> dict[str, int]:
        """How many connections each layer is to have after this rewiring; the last that moves anything is the end."""
        now = {name: self._connections(name) for name in layers}
        if self.density is None:
            return now
        if self._rewirings is None:
            raise self._needs_horizon(self.density)
        moving = self._rewirings - self.stop_before_end
        if self.epoch >= moving:
            return now
        possible = sum(possible_connections(layer) for layer in self.layers.values())
        initial = sum(self._first.values()) / possible
        density = self.density.density(initial, (self.epoch + 1) / moving)
        return connections_at(density, layers, self._first, self.allocate)

    def _resizes(self, counts: dict[str, int]) -> bool:
        return any(self._connections(name) != count for name, count in counts.items())

    @torch.no_grad()
    def _rewire(self, name: str, layer: Evolvable, state: list[Kept], count: int) -> Rewiring | None:
        flat_indices, weights, part = layer.flat_indices(), layer.weights(), part_of(layer)
        keep = self._survivors(weights, count, part)
        old = positions(keep)  # where in the old order each survivor is
        kept = flat_indices.index_select(0, old)
        stay = part.total(len(kept))
        if stay == part.total(len(flat_indices)) == count:
            return None
        grown, source = merge(kept, self._grow(name, layer, kept, count - stay, part))
        source = moved(old, source, -1)
        is_new = source < 0
        new_weights = moved(weights, source, 0)
        new_weights[is_new] = self._new_weights(layer, grown, is_new, part).to(weights)
        grad = layer.connections.grad
        layer.rewire_(grown, new_weights)
        rewiring = Rewiring(name, layer, flat_indices, grown, source)
        for tensor, new in (*([] if grad is None else [Kept(grad, 0.0)]), *state):
            rewiring.move_(tensor, new)
        layer.connections.grad = grad
        if bool(is_new.any()):
            mark_untrained(layer)
        self._remember(name, keep, source)
        return rewiring

    def _survivors(self, weights: Tensor, count: int, part: Whole) -> Tensor:
        """Which connections stay, of at most `count`."""
        keep = largest(weights, count, part)
        if self.rate > 0 and self.soft is not None:
            assert self._rewirings is not None
            first, last = self.soft
            exponent = first + (last - first) * self.epoch / self._rewirings
            keep[keep.clone()] = soft_survivors(weights[keep], self.rate, exponent, self.generator, part)
        elif self.rate > 0:
            keep[keep.clone()] = survivors(weights[keep], self.rate, part)
        return keep

    def _grow(self, name: str, layer: Evolvable, kept: Tensor, count: int, part: Whole) -> Tensor:
        sides, possible = (layer.out_features, layer.in_features), layer.out_features * layer.in_features
        if self.grow == "random" or not count:
            return random_growth(kept, possible, count, self.generator, part)
        if self.grow in SCORES:
            scores = SCORES[self.grow](kept, *sides)
            return scored_growth(kept, scores, possible, count, self.generator, self.soft is not None)
        seen, generator = self._watch[name].last(), None if self.soft is None else self.generator
        dtype = torch.promote_types(layer.connections.dtype, torch.float32)  # autocast may have changed one
        if hasattr(layer, "dense_gradient"):
            gradients = (layer.dense_gradient(self._all(x, dtype), self._all(dy, dtype)) for x, dy in seen)
            return largest_growth(kept, [(0, functools.reduce(torch.add, gradients))], count, generator)
        flat = (torch.cat([part.reshape(-1, part.shape[-1]) for part in each]) for each in zip(*seen, strict=True))
        x, dy = (self._all(samples, dtype) for samples in flat)
        return gradient_growth(kept, x, dy, count, generator=generator, part=part)

    def _all(self, samples: Tensor, dtype: torch.dtype) -> Tensor:
        samples = samples.to(dtype)
        return gathered(samples) if self._gathers else samples

    def _new_weights(self, layer: Evolvable, flat_indices: Tensor, is_new: Tensor, part: Whole) -> Tensor:
        count = int(is_new.sum())
        if self.regrow == "zero":
            return torch.zeros(count)
        noise = part.numbers(lambda n: torch.randn(n, generator=self.generator), count)
        if self.regrow != "initial":
            return noise * float(self.regrow)
        rows = flat_indices // layer.in_features
        fan_in = torch.bincount(rows, minlength=layer.out_features)
        return noise * (2 / fan_in[rows[is_new]]).sqrt()

    def _remember(self, name: str, keep: Tensor, source: Tensor) -> None:
        births = self.births[name]
        count = births.index_select(0, positions(~keep)).bincount()
        born = count.nonzero().squeeze(1)
        row = torch.stack([born, torch.full_like(born, self.epoch), count[born]], dim=1)
        self.deaths[name] = torch.cat([self.deaths[name], row])
        self.births[name] = moved(births, source, self.epoch)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, besides model and optimizer.

        For growth by gradient it also holds what the last backward pass left, as long as no `step` has followed it.
        """
        return {
            "seen": {name: watch.seen for name, watch in self._watch.items() if watch.fresh},
            "calls": self.calls,
            "epoch": self.epoch,
            "rate": self.rate,
            "seconds": self.seconds,
            "generator": self.generator.get_state(),
            "births": dict(self.births),
            "deaths": dict(self.deaths),
            "memory": dict(self._memory),
            "first": dict(self._first),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`. `ValueError` if it is of another model."""
        if set(state["births"]) != set(self.layers):
            raise ValueError(
                f"Evolution.load_state_dict: the state is of layers {sorted(state['births'])}, "
                f"this model's are {sorted(self.layers)}."
            )
        self.calls, self.epoch = state["calls"], state["epoch"]
        self.rate, self.seconds = state["rate"], state["seconds"]
        self.generator.set_state(state["generator"])
        self.births, self.deaths = dict(state["births"]), dict(state["deaths"])
        self._memory = dict(state["memory"])
        self._first = dict(state.get("first", self._first))
        self._watch_while_needed()
        for name, watch in self._watch.items():
            watch.seen = [(x, dy) for x, dy in state["seen"].get(name, [])]
            watch.fresh = bool(watch.seen)
