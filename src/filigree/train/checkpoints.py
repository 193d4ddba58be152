"""Checkpoints: all that a run needs to go on as if it had never stopped, in one file, refused to any other run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from filigree.storage import read_state, remove_leftovers, write_state
from filigree.train import rng
from filigree.train.engine import Engine
from filigree.train.hooks import FitState
from filigree.train.stopping import EarlyStopping

FILE = "checkpoint.safetensors"
_FORMAT = "filigree-checkpoint/1"


class Checkpoint:
    """The checkpoint of one run in a folder: `checkpoint.safetensors`, replaced atomically at every `save`.

    Args:
        folder: made if missing. engine: whose main process writes. state: model, optimizer, history and step.
        parts: by a name, the objects that step or listen; those with a `state_dict` are kept.
        stopping: the early stopping, with its best weights.
        generators: this process's own random generators; torch's, numpy's and Python's global ones are kept too.
        settings: what else must be equal for a checkpoint to be this run's (seed, batch size, ...).
    """

    def __init__(
        self, folder: str | Path, engine: Engine, state: FitState, parts: dict[str, list[Any]],
        stopping: EarlyStopping | None, generators: list[torch.Generator], **settings: Any,
    ) -> None:  # fmt: skip
        self.path = Path(folder) / FILE
        self.engine, self.state, self.parts, self.stopping = engine, state, parts, stopping
        self.generators, self._loaded = generators, None
        self.fingerprint = fingerprint(state.model, state.optimizer, parts, **settings)

    def open(self) -> None:
        """Make the folder, and clear what a killed process left half-written there."""
        if self.engine.is_main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path)

    def save(self) -> None:
        """Write the run as it is now, at the end of an epoch."""
        own = {"global": rng.capture(), "generators": [generator.get_state() for generator in self.generators]}
        random = self.engine.gather(own)
        if self.engine.is_main:
            state, scaler = self.state, self.engine.scaler
            content = {
                "model": state.model.state_dict(),
                "optimizer": state.optimizer.state_dict(),
                "parts": {name: [_state(part) for part in parts] for name, parts in self.parts.items()},
                "early_stopping": _state(self.stopping),
                "scaler": _state(scaler),
                "random": random,
                "history": state.history.rows,
                "stopped": state.history.stopped,
                "step": state.step,
            }
            write_state(self.path, {"format": _FORMAT, "fingerprint": self.fingerprint, "content": content})
        self.engine.wait()

    def load(self) -> bool:
        """Take up the file, False where there is none: everything but hooks and random generators, see `settle`.

        Raises:
            ValueError: damaged, not a checkpoint, or of another run, in one line that names the first difference.
        """
        if not self.path.exists():
            return False
        file = read_state(self.path)
        if not isinstance(file, dict) or file.get("format") != _FORMAT:
            raise ValueError(f"{self.path}: not a checkpoint of fit.")
        different = difference(file["fingerprint"], self.fingerprint)
        if different:
            raise ValueError(f"{self.path}: this checkpoint is of another run: {different}.")
        saved, state = file["content"], self.state
        self._attempt(state.model, saved["model"])
        self._attempt(state.optimizer, saved["optimizer"])
        for name in ("each_epoch", "each_step"):
            for part, part_state in zip(self.parts[name], saved["parts"][name], strict=True):
                self._attempt(part, part_state)
        self._attempt(self.stopping, saved["early_stopping"])
        self._attempt(self.engine.scaler, saved["scaler"])
        state.history.rows[:] = saved["history"]
        state.history.stopped, state.step = saved["stopped"], saved["step"]
        state.epoch = max(0, len(state.history) - 1)
        self._loaded = saved
        return True

    def settle(self) -> None:
        """The last of a resume, when all that starts with a run has started: hooks, then the random generators."""
        if self._loaded is None:
            return
        saved, self._loaded = self._loaded, None
        for hook, hook_state in zip(self.parts["hooks"], saved["parts"]["hooks"], strict=True):
            self._attempt(hook, hook_state)
        own = saved["random"][self.engine.rank]
        for generator, generator_state in zip(self.generators, own["generators"], strict=True):
            generator.set_state(generator_state)
        rng.restore(own["global"])

    def _attempt(self, part: Any, state: Any) -> None:
        """`part.load_state_dict(state)`, with whatever it says about a state that does not fit as one line."""
        if part is None or state is None:
            return
        load: Callable[[Any], Any] = part.load_state_dict
        try:
            load(state)
        except (RuntimeError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.path}: {type(part).__name__} refuses this checkpoint ({reason[:300]}).") from None


def _state(part: Any) -> Any:
    return part.state_dict() if hasattr(part, "state_dict") else None


def fingerprint(
    model: nn.Module, optimizer: torch.optim.Optimizer, parts: dict[str, list[Any]], **settings: Any
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be this run's: parameters by name and shape, and the settings.

    The number of connections of a sparse layer is left out: it is drawn, and the checkpoint brings its own.
    """
    parameters = {}
    for name, parameter in model.named_parameters():
        layer, _, leaf = name.rpartition(".")
        indptr = getattr(model.get_submodule(layer), "indptr", None) if leaf == "values" else None
        parameters[name] = list(parameter.shape) if indptr is None else ["connections", len(indptr) - 1]
    kinds = {name: [type(part).__name__ for part in objects] for name, objects in parts.items()}
    return {"parameters": parameters, "optimizer": type(optimizer).__name__, **kinds, **settings}


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first difference of two fingerprints in words, or nothing."""
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if key != "parameters" or not isinstance(a, dict) or not isinstance(b, dict):
            return f"its {key.replace('_', ' ')} is {a}, this run's is {b}"
        for name in {**a, **b}:
            if name not in b:
                return f"its model has a parameter {name!r}, this one has not"
            if name not in a:
                return f"its model has no parameter {name!r}, this one has"
            if a[name] != b[name]:
                return f"its parameter {name!r} is {a[name]}, this model's is {b[name]}"
    return ""
