"""The stepping protocol: what `fit`, Lightning's and transformers' trainers call while a network trains, and when.

A callback is any of these:

- an object with `.step()`: an lr_scheduler, `fg.Evolution`, an annealing. Its attribute `interval`, "epoch" or "step",
  says when it steps; where it has none, as torch's schedulers, it steps each epoch, or in `each_step(...)` each step. A
  `step` that takes `metrics` is given the epoch's row of the history, one that takes `loss` the loss of the step.
  `set_horizon(calls)` is called when a run begins, with the number of calls of `step` that its epochs (or steps) have.
- an object with any of the methods in `EVENTS`, each called with the `FitState`; it may have a `.step()` as well.
- a plain callable, which is called with the `FitState` at the end of each epoch.
- a function of two arguments `(model, optimizer)`, which is called once, when training begins, and returns one of the
  above: `fg.SET` and `lambda model, optimizer: fg.SET(model, optimizer, 0.2)` for trainers that make the optimizer.

An object with `.step()` and a `rate` rewires. Its steps are made only once it is certain that another step of the
optimizer follows, so that no run ends on connections that were never trained, however it comes to its end.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from filigree.train.history import History
from filigree.train.records import Record

EVENTS = ("on_fit_start", "on_epoch_start", "on_step_end", "on_epoch_end", "on_fit_end")
_FOLLOWED = ("val_loss", "eval_loss", "train_loss", "loss")  # by ReduceLROnPlateau, the first that there is


@dataclass
class FitState:
    """What a callback sees of a run. Setting `stop` ends the run after the current epoch (at once, in `on_step_end`).

    In `on_step_end` the gradients of the step are still there, and `loss` is its loss; `step` counts batches over all
    epochs. In `on_epoch_end` the history's last row is this epoch's, and the network is as it was measured: rewiring
    follows, if another epoch does, and completes the row. `epochs` is `sys.maxsize` where a trainer does not know it.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epochs: int
    history: History
    record: Record | None = None
    epoch: int = 0
    step: int = 0
    loss: Tensor | None = field(default=None, repr=False)
    stop: bool = False


@dataclass(frozen=True)
class _EachStep:
    callback: Any


def each_step(callback: Any) -> Any:
    """Let an object with `.step()` step after each step of the optimizer: `callbacks=[fg.each_step(one_cycle)]`.

    A function `(model, optimizer)` that makes such an object will do as well. Objects with `interval = "step"`, such as
    `fg.RigL` and `fg.NoiseAnnealing`, do so by themselves.
    """
    return _EachStep(callback)


class Stepper:
    """A callback with `.step()`, timed."""

    def __init__(self, inner: Any, interval: str) -> None:
        name = type(inner).__name__
        if interval not in ("epoch", "step"):
            raise ValueError(f"{name}: interval must be 'epoch' or 'step'. Got {interval!r}.")
        if interval == "step" and isinstance(inner, ReduceLROnPlateau):
            raise ValueError(f"{name}: it follows the loss of an epoch. Got interval='step'.")
        self.inner, self.by_step, self.seconds = inner, interval == "step", 0.0
        self.rewires = hasattr(inner, "rate")
        self._takes = inspect.signature(inner.step).parameters  # looked at once, not every epoch

    def step(self, state: FitState) -> None:
        began = time.perf_counter()
        self.untimed()(state)
        self.seconds += time.perf_counter() - began

    def untimed(self) -> Callable[[FitState], Any]:
        """The call of `step` with what it takes: in the steps of an epoch a microsecond counts."""
        step = self.inner.step
        if isinstance(self.inner, ReduceLROnPlateau):  # torch's own wants one number, not all of them
            return lambda state: step(_followed(state.history.rows[-1]))
        if self.by_step and "loss" in self._takes:
            return lambda state: step(loss=state.loss)
        if not self.by_step and "metrics" in self._takes:
            return lambda state: step(metrics=dict(state.history.rows[-1]))
        return lambda state: step()


class Callbacks:
    """The callbacks of one run.

    Args:
        given: one or a list of them; see the top of this file.
        state: what they see. caller: whose argument they are, for errors.

    Attributes:
        objects: the callbacks, those made by functions `(model, optimizer)` too. steppers: those with `.step()`.
        due: steps that wait until it is certain that another step of the optimizer follows.
        ended: how many epochs have ended.

    Raises:
        TypeError, ValueError: something that is not a callback.
    """

    def __init__(self, given: Any, state: FitState, caller: str = "fit") -> None:
        check_callbacks(given, caller)
        self.state, self.due, self.ended = state, list[Stepper](), 0
        self.objects, self.steppers = list[Any](), list[Stepper]()
        self._events: dict[str, list[Callable[[FitState], Any]]] = {event: [] for event in EVENTS}
        for callback in listed(given):
            self._add(callback, caller)

    def _add(self, callback: Any, caller: str) -> None:
        by_step = isinstance(callback, _EachStep)
        if by_step:
            callback = callback.callback
        if _is_factory(callback):
            callback = callback(self.state.model, self.state.optimizer)
            check_callbacks([callback], caller)
        self.objects.append(callback)
        methods = _methods(callback)
        if _steps(callback):
            self.steppers.append(Stepper(callback, "step" if by_step else getattr(callback, "interval", "epoch")))
        elif not methods:
            self._events["on_epoch_end"].append(callback)
        for event in methods:
            self._events[event].append(getattr(callback, event))

    @property
    def seconds(self) -> float:
        """What the steps took so far."""
        return sum(stepper.seconds for stepper in self.steppers)

    # -- events ------------------------------------------------------------------------------------------------------

    def set_horizon(self, epochs: int | None, steps: int | None) -> None:
        """A run begins, or goes on, with so many epochs and steps to come (None: unknown)."""
        for stepper in self.steppers:
            calls = steps if stepper.by_step else epochs
            if calls is not None and hasattr(stepper.inner, "set_horizon"):
                stepper.inner.set_horizon(calls + (stepper in self.due))

    def emit(self, event: str) -> None:
        for call in self._events[event]:
            call(self.state)

    def of_a_step(self) -> list[Callable[[FitState], Any]]:
        """What to call with the state after each step of the optimizer; `state.loss` is read."""
        steppers = [stepper for stepper in self.steppers if stepper.by_step]
        calls = [stepper.untimed() for stepper in steppers if not stepper.rewires]
        rewiring = [stepper for stepper in steppers if stepper.rewires]
        return calls + ([lambda state: self.due.extend(rewiring)] if rewiring else []) + self._events["on_step_end"]

    def end_epoch(self, stopped: bool = False) -> None:
        """Epoch `state.epoch` is over and its row is in the history; `stopped`: it is to be followed by nothing."""
        self.ended = self.state.epoch + 1
        for stepper in self.steppers:
            if stepper.by_step:
                continue
            if stepper.rewires or stopped:
                self.due.append(stepper)
            else:
                stepper.step(self.state)
        self.emit("on_epoch_end")

    def rewire(self) -> None:
        """Another step of the optimizer follows: make the steps that are due."""
        while self.due:
            self.due.pop(0).step(self.state)

    # -- states ------------------------------------------------------------------------------------------------------

    @property
    def kept(self) -> list[Any]:
        """Those whose states belong to a checkpoint."""
        return [callback for callback in self.objects if _steps(callback) or hasattr(callback, "state_dict")]

    def state_dict(self) -> dict[str, Any]:
        states = [callback.state_dict() if hasattr(callback, "state_dict") else None for callback in self.kept]
        return {"states": states, "due": [self.steppers.index(stepper) for stepper in self.due], "ended": self.ended}

    def load_steppers(self, saved: dict[str, Any], load: Callable[[Any, Any], Any] | None = None) -> None:
        """Before `on_fit_start`: the states of what steps, and what is due. `load` may wrap `load_state_dict`."""
        self._load(saved, load, of_steppers=True)
        due, ended = saved["due"], saved["ended"]
        if type(ended) is not int or not all(type(i) is int and 0 <= i < len(self.steppers) for i in due):
            raise ValueError(f"it must say which callbacks are to step. Got {due!r} after {ended!r} epochs")
        self.due, self.ended = [self.steppers[i] for i in due], ended

    def load_hooks(self, saved: dict[str, Any], load: Callable[[Any, Any], Any] | None = None) -> None:
        """After `on_fit_start`, where hooks begin from a clean slate: the states of all others."""
        self._load(saved, load, of_steppers=False)

    def _load(self, saved: dict[str, Any], load: Callable[[Any, Any], Any] | None, of_steppers: bool) -> None:
        for callback, state in zip(self.kept, saved["states"], strict=True):
            if state is not None and _steps(callback) == of_steppers:
                load(callback, state) if load is not None else callback.load_state_dict(state)


def check_callbacks(given: Any, caller: str) -> None:
    """Refuse what is not a callback, by name."""
    for callback in listed(given):
        expected = f"an object with .step() or any of {', '.join(EVENTS)}, or a callable"
        fits = _steps(callback) or bool(_methods(callback)) or callable(callback)
        if isinstance(callback, _EachStep):
            callback, expected = callback.callback, "an object with .step() in each_step(...)"
            fits = _steps(callback) or _is_factory(callback)
        if not fits or isinstance(callback, type):
            name = getattr(callback, "__name__", type(callback).__name__)
            raise TypeError(f"{caller}: callbacks: expected {expected}. Got {name}.")


def listed(one_or_many: Any) -> Sequence[Any]:
    """A sequence as it is, anything else as a sequence of one."""
    return one_or_many if isinstance(one_or_many, list | tuple) else (one_or_many,)


def _steps(callback: Any) -> bool:
    return callable(getattr(callback, "step", None))


def _methods(callback: Any) -> list[str]:
    return [event for event in EVENTS if callable(getattr(callback, event, None))]


def _is_factory(callback: Any) -> bool:
    """Whether it is a function of two required arguments, `(model, optimizer)`."""
    if isinstance(callback, type) or not callable(callback) or _steps(callback) or _methods(callback):
        return False
    try:
        parameters = inspect.signature(callback).parameters.values()
    except ValueError:  # a function of C that does not say
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters) == 2


def _followed(row: dict[str, Any]) -> float:
    for name in _FOLLOWED:
        if name in row:
            return float(row[name])
    raise ValueError(f"ReduceLROnPlateau: it needs one of {', '.join(_FOLLOWED)}. Got {', '.join(row) or 'none'}.")
