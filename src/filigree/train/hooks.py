"""What `fit` calls while it runs: hooks on events, and objects that step each epoch or each batch."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from filigree.train.history import History, Row
from filigree.train.records import Record

EVENTS = ("on_fit_start", "on_epoch_start", "on_step_end", "on_epoch_end", "on_fit_end")


@dataclass
class FitState:
    """What a hook sees of a run. Setting `stop` ends the run after the current epoch (at once, in `on_step_end`).

    In `on_step_end` the gradients of the step are still there, and `loss` is its loss; `step` counts batches over all
    epochs. In `on_epoch_end` the history's last row is this epoch's, and rewiring after it is done.
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


Hook = Callable[[FitState], Any]


def collect(hooks: Any) -> dict[str, list[Hook]]:
    """For each event what to call, in the order of `hooks`; a plain callable is called at the end of an epoch."""
    events: dict[str, list[Hook]] = {event: [] for event in EVENTS}
    for hook in listed(hooks):
        methods = [event for event in EVENTS if callable(getattr(hook, event, None))]
        if not methods and not callable(hook):
            raise TypeError(f"hooks: expected a callable or any of {', '.join(EVENTS)}. Got {type(hook).__name__}.")
        for event in methods:
            events[event].append(getattr(hook, event))
        if not methods:
            events["on_epoch_end"].append(hook)
    return events


class Stepper:
    """An object with `.step()` (an lr_scheduler, `fg.Evolution`, an annealing), timed; one with a `rate` rewires."""

    def __init__(self, inner: Any, argument: str) -> None:
        step = getattr(inner, "step", None)
        if not callable(step) or isinstance(inner, type):
            raise TypeError(f"{argument}: expected an object with .step(). Got {type(inner).__name__}.")
        self.inner, self.seconds, self._step = inner, 0.0, step
        self.takes_metrics = "metrics" in inspect.signature(step).parameters  # looked at once, not every epoch
        self.rewires = hasattr(inner, "rate")

    def step(self, metrics: Row | None = None) -> None:
        began = time.perf_counter()
        if isinstance(self.inner, ReduceLROnPlateau) and metrics is not None:
            self._step(metrics.get("val_loss", metrics["train_loss"]))  # torch's own wants one number, not all of them
        elif self.takes_metrics and metrics is not None:
            self._step(metrics=metrics)
        else:
            self._step()
        self.seconds += time.perf_counter() - began

    def fast(self) -> Callable[[], Any]:
        """What to call in every batch: the object's own method, unless its time is of interest."""
        return self.step if self.rewires else self._step


def listed(one_or_many: Any) -> Sequence[Any]:
    """A sequence as it is, anything else as a sequence of one."""
    return one_or_many if isinstance(one_or_many, list | tuple) else (one_or_many,)
