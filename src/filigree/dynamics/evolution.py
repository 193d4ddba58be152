"""Evolution: sparse layers rewired while they train (SET and its variants; RigL)."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from filigree.dynamics.consistency import check_rewired, gathered
from filigree.dynamics.horizon import horizon_of
from filigree.dynamics.rewire import gradient_growth, largest_growth, merge, random_growth, survivors
from filigree.dynamics.schedules import Adaptive, Schedule, as_schedule
from filigree.untrained import mark_untrained


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
    weights and every exact zero, and gains as many connections where there are none. The number of connections never
    changes, and the optimizer's state follows: it is permuted with the values and zero at new connections.

    Args:
        model: holds sparse layers (after `fg.convert_`).
        optimizer: holds their parameters; any whose state tensors have the parameter's shape. May be None.
        schedule: zeta: a `Schedule`, a number, or a callable `f(epoch) -> zeta`.
        epochs: the horizon: how often `step` will be called, the last call included, which rewires no more. `fg.fit`
            and the callbacks for trainers fill it in. In a loop of your own give it: without it the last call rewires
            too, and leaves connections that were never trained; schedules that need it are refused by name then.
        stop_before_end: how many epochs at the end are not followed by a rewiring (Chouliaras 2021, 3.5.1); at least 1.
        grow: "random" (SET) or "gradient" (RigL: where the gradient of the last batch is largest; the dense gradient
            is formed block by block, at a rewiring only).
        regrow: the weight of a new connection: "zero", "initial" (drawn as at the start, N(0, 2 / fan-in)), or a
            number, the standard deviation of N(0, s^2).
        every: rewire at every n-th call of `step` only; the schedule counts rewirings.
        interval: when a trainer calls `step`: after each "epoch", or after each "step" of the optimizer, which `epochs`
            then counts.
        seed: of removal, growth and new weights.

    Of several data-parallel processes each calls `step` after the same update; all remove and grow the same
    connections, by gradient where it is largest over the samples of all. With FILIGREE_DEBUG=1 in the environment every
    rewiring is checked: see `check_rewired`.

    Attributes:
        epoch: rewirings due so far. rate: the zeta applied last. seconds: time spent in `step`, in seconds.
        births: for each layer the epoch in which each connection was grown (0: from the start).
        deaths: for each layer, rows (born, died, count) of the connections removed so far.

    Raises:
        ValueError: no sparse layers; an optimizer that does not hold their parameters (made before `convert_`); at
            `step`, a schedule without its horizon or zeta outside [0, 1].
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        schedule: Schedule | float | Callable[..., float],
        epochs: int | None = None,
        *,
        stop_before_end: int = 1,
        grow: Literal["random", "gradient"] = "random",
        regrow: Literal["zero", "initial"] | float = "zero",
        every: int = 1,
        interval: Literal["epoch", "step"] = "epoch",
        seed: int = 0,
    ) -> None:
        self.layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Evolvable)}
        if not self.layers:
            raise ValueError(
                "Evolution: the model has no sparse layers. Call fg.convert_(model, fg.Sparse(...)) first."
            )
        self.optimizer, self.schedule = optimizer, as_schedule(schedule)
        _check_optimizer(optimizer, self.layers)
        for label, number, least in (
            ("epochs", epochs, 1), ("every", every, 1), ("stop_before_end", stop_before_end, 1)
        ):  # fmt: skip
            if number is not None and number < least:
                raise ValueError(f"Evolution: {label} must be at least {least}. Got {number}.")
        if grow not in ("random", "gradient"):
            raise ValueError(f"Evolution: grow must be 'random' or 'gradient'. Got {grow!r}.")
        if not (regrow in ("zero", "initial") or (isinstance(regrow, int | float) and regrow >= 0)):
            raise ValueError(f"Evolution: regrow must be 'zero', 'initial' or a number >= 0. Got {regrow!r}.")
        if interval not in ("epoch", "step"):
            raise ValueError(f"Evolution: interval must be 'epoch' or 'step'. Got {interval!r}.")
        self.epochs = self._given = epochs
        self.stop_before_end, self.grow, self.regrow = stop_before_end, grow, regrow
        self.every, self.interval = every, interval
        self.calls, self.epoch, self.rate, self.seconds = 0, 0, 0.0, 0.0
        self.generator = torch.Generator().manual_seed(seed)
        self.births = {
            name: torch.zeros(layer.flat_indices().numel(), dtype=torch.int32) for name, layer in self.layers.items()
        }
        self.deaths = {name: torch.zeros(0, 3, dtype=torch.int64) for name in self.layers}
        self._memory: dict[str, float] = {}
        self._checks = os.environ.get("FILIGREE_DEBUG") == "1"
        self._watch = {name: _Watch(layer) for name, layer in self.layers.items()} if grow == "gradient" else {}

    def set_horizon(self, calls: int) -> None:
        """A run begins, or goes on, in which `step` is called so many times. `ValueError`: `epochs` contradicts it."""
        self.epochs = horizon_of("Evolution", self._given, self.calls, calls)

    def step(self, metrics: dict[str, Any] | None = None) -> None:
        """The end of an epoch: rewire at the schedule's rate. `metrics` is what `Adaptive` reads.

        Raises:
            ValueError: zeta outside [0, 1], a missing horizon, growth by gradient without a backward pass. Model,
                optimizer and evolution are then as they were.
        """
        began = time.perf_counter()
        is_due = (self.calls + 1) % self.every == 0
        if is_due:
            rate = self._next_rate(metrics)
            if rate > 0:
                for watch in self._watch.values():
                    watch.last()
            self.rate = rate
        self.calls += 1
        for watch in self._watch.values():
            watch.fresh = False
        if not is_due:
            return
        self.epoch += 1
        if self.rate > 0:
            for name, layer in self.layers.items():
                connections = len(self.births[name])
                self._rewire(name, layer)
                if self._checks:
                    check_rewired(name, layer, connections)
        self.seconds += time.perf_counter() - began

    def _next_rate(self, metrics: dict[str, Any] | None) -> float:
        rewirings = None if self.epochs is None else math.ceil(self.epochs / self.every)
        if rewirings is None and self.schedule.needs_horizon:
            raise ValueError(f"Evolution: {type(self.schedule).__name__} needs the horizon. Give epochs=.")
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

    @torch.no_grad()
    def _rewire(self, name: str, layer: Evolvable) -> None:
        flat_indices, weights = layer.flat_indices(), layer.weights()
        keep = survivors(weights, self.rate)
        kept, removed = flat_indices[keep], int((~keep).sum())
        if not removed:
            return
        grown, source = merge(kept, self._grow(name, layer, kept, removed))
        old = keep.nonzero().squeeze(1)  # where in the old order each survivor was
        source = torch.where(source < 0, -1, old[source.clamp(min=0)] if len(old) else source)
        is_new = source < 0
        new_weights = torch.where(is_new, 0, weights[source.clamp(min=0)])
        new_weights[is_new] = self._new_weights(layer, grown, is_new).to(weights)
        layer.rewire_(grown, new_weights)
        state = self.optimizer.state.get(layer.connections, {}) if self.optimizer else {}
        for tensor in (layer.connections.grad, *state.values()):
            if isinstance(tensor, Tensor) and tensor.shape == layer.connections.shape:
                layer.permute_optimizer_state_(tensor, source)
        mark_untrained(layer)
        self._remember(name, keep, source, is_new)

    def _grow(self, name: str, layer: Evolvable, kept: Tensor, count: int) -> Tensor:
        if self.grow == "random":
            return random_growth(kept, layer.out_features * layer.in_features, count, self.generator)
        seen = self._watch[name].last()
        if hasattr(layer, "dense_gradient"):
            gradients = (layer.dense_gradient(gathered(x), gathered(dy)) for x, dy in seen)
            return largest_growth(kept, [(0, functools.reduce(torch.add, gradients))], count)
        x, dy = (gathered(torch.cat([p.reshape(-1, p.shape[-1]) for p in parts])) for parts in zip(*seen, strict=True))
        return gradient_growth(kept, x, dy, count)

    def _new_weights(self, layer: Evolvable, flat_indices: Tensor, is_new: Tensor) -> Tensor:
        count = int(is_new.sum())
        if self.regrow == "zero":
            return torch.zeros(count)
        noise = torch.randn(count, generator=self.generator)
        if self.regrow != "initial":
            return noise * float(self.regrow)
        rows = flat_indices // layer.in_features
        fan_in = torch.bincount(rows, minlength=layer.out_features)
        return noise * (2 / fan_in[rows[is_new]]).sqrt()

    def _remember(self, name: str, keep: Tensor, source: Tensor, is_new: Tensor) -> None:
        births = self.births[name]
        count = births[~keep].bincount()
        born = count.nonzero().squeeze(1)
        row = torch.stack([born, torch.full_like(born, self.epoch), count[born]], dim=1)
        self.deaths[name] = torch.cat([self.deaths[name], row])
        self.births[name] = torch.where(is_new, self.epoch, births[source.clamp(min=0)])

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
        for name, watch in self._watch.items():
            watch.seen = [(x, dy) for x, dy in state["seen"].get(name, [])]
            watch.fresh = bool(watch.seen)


class _Watch:
    """Holds a layer's inputs and the gradients at its pre-activations, for growth by gradient: of all its calls in the
    last backward pass (a recurrent network calls a layer once a time step)."""

    def __init__(self, layer: Evolvable) -> None:
        assert isinstance(layer, nn.Module)
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.fresh = False  # no step has followed yet
        self._over = True  # a forward pass has begun since: the next gradient is of another backward pass
        layer.register_forward_hook(self._forward)

    def _forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        if not y.requires_grad:
            return
        self._over = True
        x, active = inputs[0].detach(), (y.detach() > 0 if getattr(layer, "relu", False) else None)

        def backward(dy: Tensor) -> None:
            if self._over:
                self.seen, self.fresh, self._over = [], True, False
            self.seen.append((x, dy.detach() if active is None else torch.where(active, dy.detach(), 0)))

        y.register_hook(backward)

    def last(self) -> list[tuple[Tensor, Tensor]]:
        if not self.seen:
            raise ValueError("Evolution: growth by gradient needs a backward pass before step().")
        return self.seen


def _check_optimizer(optimizer: torch.optim.Optimizer | None, layers: dict[str, Evolvable]) -> None:
    if optimizer is None:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, layer in layers.items():
        if id(layer.connections) not in held:
            raise ValueError(
                f"Evolution: the optimizer does not hold the weights of layer {name!r}; made before convert_, it holds "
                "stale parameters. Make the optimizer after convert_."
            )
