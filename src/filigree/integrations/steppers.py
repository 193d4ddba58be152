"""What the callbacks share: the objects that step, made when training begins, stepped at the right time, kept."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from filigree.train.hooks import listed


class Steppers:
    """The objects with `.step()` of one training run.

    Args:
        each_epoch: `fg.Evolution`, annealings and the like, or functions `(model, optimizer) -> such an object`, called
            when training begins: most trainers make their optimizer only then. They step between epochs, just before
            the next one begins. Nothing follows the last epoch, and a checkpoint that is written after an epoch holds
            the network as it was measured. A `step` that takes `metrics` is given those of the epoch.
        each_step: the same, stepped after each step of the optimizer. A `step` that takes a `loss` is given the step's.
    """

    def __init__(self, each_epoch: Any = (), each_step: Any = ()) -> None:
        self.given = {"each_epoch": list(listed(each_epoch)), "each_step": list(listed(each_step))}
        for name, things in self.given.items():
            for thing in things:
                if isinstance(thing, type) or not (hasattr(thing, "step") or callable(thing)):
                    raise TypeError(
                        f"Dynamics: {name} expects objects with .step(), or functions (model, optimizer) that make "
                        f"one. Got {getattr(thing, '__name__', type(thing).__name__)}."
                    )
        self.made: dict[str, list[Any]] = {}
        self.epochs = 0  # how many have been followed by a step
        self.metrics: dict[str, float] = {}  # of the last one
        self._loaded: dict[str, Any] | None = None

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Training begins: make what has to be made, and take up the state that was loaded before."""
        self.epochs, self.metrics = 0, {}
        self.made = {
            name: [thing if hasattr(thing, "step") else thing(model, optimizer) for thing in things]
            for name, things in self.given.items()
        }
        for thing in (*self.made["each_epoch"], *self.made["each_step"]):
            if getattr(thing, "loss", None) == "validation":
                raise ValueError(f"Dynamics: {type(thing).__name__} must follow the training loss. Got 'validation'.")
        if self._loaded is not None:
            state, self._loaded = self._loaded, None
            self.epochs, self.metrics = state["epochs"], state["metrics"]
            for name, things in self.made.items():
                for thing, its in zip(things, state[name], strict=True):
                    if its is not None:
                        thing.load_state_dict(its)

    def begin_epoch(self, epoch: int) -> None:
        """Epoch `epoch` (from 0) begins; so far as those before it have not been followed by a step, they are now."""
        while self.epochs < epoch:
            self.epochs += 1
            for thing in self.made["each_epoch"]:
                _step(thing, metrics=self.metrics)

    def end_step(self, loss: Any) -> None:
        """The optimizer has stepped; `loss` may be None where it is not known."""
        for thing in self.made["each_step"]:
            _step(thing, loss=loss)

    def state_dict(self) -> dict[str, Any]:
        states = {
            name: [thing.state_dict() if hasattr(thing, "state_dict") else None for thing in things]
            for name, things in self.made.items()
        }
        return states | {"epochs": self.epochs, "metrics": self.metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Taken up when training begins."""
        self._loaded = state


_FOLLOWED = ("val_loss", "eval_loss", "train_loss", "loss")  # by ReduceLROnPlateau, the first that there is


def _step(thing: Any, **offered: Any) -> None:
    if isinstance(thing, ReduceLROnPlateau):  # torch's own wants one number, not all of them
        metrics = offered.get("metrics", {})
        found = [metrics[name] for name in _FOLLOWED if name in metrics]
        if not found:
            raise ValueError(f"Dynamics: ReduceLROnPlateau needs one of {', '.join(_FOLLOWED)}. Got {list(metrics)}.")
        thing.step(found[0])
        return
    taken = inspect.signature(thing.step).parameters
    thing.step(**{name: value for name, value in offered.items() if name in taken})
