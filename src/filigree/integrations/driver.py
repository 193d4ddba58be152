"""What the callbacks for other people's trainers share: the callbacks of one run, and where it is."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from filigree.train.history import History
from filigree.train.stepping import Callbacks, FitState, check_callbacks


class Driver:
    """The events of a trainer's run, in the order in which `fg.fit` has them.

    Args:
        given: the callbacks, see `filigree.train.stepping`. Most trainers make the optimizer when training begins:
            functions `(model, optimizer)` are called then.

    Attributes:
        callbacks: those of the run. state: what they see of it.
    """

    callbacks: Callbacks
    state: FitState

    def __init__(self, given: Any) -> None:
        check_callbacks(given, "Dynamics")
        self._given = given
        self._loaded: dict[str, Any] | None = None

    def begin(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, steps: int | None, step: int,
        epoch: int = 0,
    ) -> None:  # fmt: skip
        """A run of so many epochs and steps begins (`sys.maxsize`, None: unknown), or goes on at `step`; the epochs
        before `epoch` are of an earlier one, unless a state that was loaded says more."""
        self.state = FitState(model, optimizer, epochs, History(), step=step)
        self.callbacks = Callbacks(self._given, self.state, "Dynamics")
        self.callbacks.ended, saved = epoch, self._loaded
        if saved is not None:
            self.state.history.rows[:] = saved["rows"]
            self.callbacks.load_steppers(saved)
        to_come = None if epochs == sys.maxsize else epochs - self.callbacks.ended
        self.callbacks.set_horizon(to_come, None if steps is None else steps - step)
        self._of_a_step = self.callbacks.of_a_step()
        self.callbacks.emit("on_fit_start")
        if saved is not None:
            self.callbacks.load_hooks(saved)
        self._loaded = None

    def begin_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Epoch `epoch` (from 0) begins; those before it that have not been ended yet are ended first."""
        while self.callbacks.ended < epoch:
            self.end_epoch(self.callbacks.ended, metrics)
        self.state.epoch = epoch
        self.begin_step()
        self.callbacks.emit("on_epoch_start")

    def begin_step(self) -> None:
        """A step of the optimizer follows, unless a callback has ended the run."""
        if not self.state.stop:
            self.callbacks.rewire()

    def end_step(self, step: int, loss: Any) -> None:
        """The optimizer has made its `step`-th step; `loss` may be None where it is not known."""
        self.state.step, self.state.loss = step, loss
        for call in self._of_a_step:
            call(self.state)

    def end_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """The epoch is over, and this is what was measured."""
        self.state.epoch = epoch
        measured = {name: value for name, value in metrics.items() if name != "epoch"}  # trainers count fractions
        self.state.history.rows.append({"epoch": epoch} | measured)
        self.callbacks.end_epoch()

    def end(self) -> None:
        self.callbacks.emit("on_fit_end")

    def state_dict(self) -> dict[str, Any] | None:
        """None before a run has begun, unless a state waits to be taken up."""
        if not hasattr(self, "callbacks"):
            return self._loaded
        return self.callbacks.state_dict() | {"rows": self.state.history.rows}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Taken up when training begins."""
        self._loaded = state
