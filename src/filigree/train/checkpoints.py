"""Checkpoints: all that a run needs to go on as if it had never stopped, in one file, refused to any other run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from filigree.config import one_line
from filigree.io.storage import read, read_state, remove_leftovers, write_state
from filigree.nn.resizing import LIKE_PARAMETERS
from filigree.rollback import AllOrNothing
from filigree.train import rng
from filigree.train.engine import Engine
from filigree.train.stepping import Callbacks
from filigree.train.stopping import EarlyStopping

FILE = "checkpoint.safetensors"
_FORMAT = "filigree-checkpoint/2"


class Checkpoint:
    """The checkpoint of one run in a folder: `checkpoint.safetensors`, replaced atomically at every `save`.

    Args:
        folder: made if missing. engine: whose main process writes.
        callbacks: those of the run, with its state: model, optimizer, history and step.
        stopping: the early stopping, with its best weights.
        generators: this process's own random generators; torch's, numpy's and Python's global ones are kept too.
        settings: what else must be equal for a checkpoint to be this run's (seed, batch size, ...).
    """

    def __init__(
        self, folder: str | Path, engine: Engine, callbacks: Callbacks, stopping: EarlyStopping | None,
        generators: list[torch.Generator], **settings: Any,
    ) -> None:  # fmt: skip
        self.path = Path(folder) / FILE
        self.engine, self.callbacks, self.state, self.stopping = engine, callbacks, callbacks.state, stopping
        self.generators = generators
        self._loaded: dict[str, Any] | None = None
        self._first: dict[str, Any] = {}  # the random generators when the epoch in hand began
        self.midway: dict[str, Any] | None = None  # of a loaded file that was saved within an epoch
        self.fingerprint = fingerprint(self.state.model, self.state.optimizer, callbacks.kept, **settings)

    def open(self) -> None:
        """Make the folder, and clear what a killed process left half-written there."""
        if self.path.parent.exists() and not self.path.parent.is_dir():
            raise ValueError(f"fit: checkpoint must be a folder. {self.path.parent} is a file.")
        if self.engine.is_main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path)

    def begin(self) -> None:
        """An epoch's first batch comes next: what is drawn from here on is its order."""
        self._first = self._capture()

    def save(self, midway: dict[str, Any] | None = None) -> None:
        """Write the run as it is now, at the end of an epoch; within one, `midway` says how far it is."""
        engine, random = self.engine, self.engine.gather(self._capture())
        own: dict[str, Any] = {}
        fingerprints = [self.fingerprint]
        if engine.is_main or engine.divides:
            own = {
                "model": self.state.model.state_dict(),
                "optimizer": self.state.optimizer.state_dict(),
                "callbacks": self.callbacks.state_dict(),
                "early_stopping": _state(self.stopping),
                "scaler": _state(engine.scaler),
            }
        if engine.divides:
            own, fingerprints = {"processes": engine.states(own)}, engine.gather(self.fingerprint)
        if engine.is_main or engine.divides:
            state = self.state
            content = own | {
                "random": random,
                "history": state.history.rows,
                "stopped": state.history.stopped,
                "topology": None if state.record is None else state.record.topology,
                "step": state.step,
                "midway": None if midway is None else midway | {"first": self._first},
            }
            whole: dict[str, Any] = {"format": _FORMAT, "fingerprint": fingerprints[0], "content": content}
            if engine.divides:
                whole["fingerprints"] = fingerprints
            write_state(self.path, whole, writes=engine.is_main)
        self.engine.wait()

    def load(self) -> bool:
        """Take up the file, False where there is none: everything but hooks and random generators, see `settle`.

        Raises:
            ValueError: damaged, not a checkpoint, or of another run, in one line that names the first difference. The
                model and the optimizer are then as they were.
        """
        if not self.path.exists():
            return False
        file = read_state(self.path, lazily=self.engine.divides)
        if not isinstance(file, dict) or file.get("format") != _FORMAT:
            raise ValueError(f"{self.path}: not a checkpoint of fit.")
        with self._refusing("this run"):
            rank, content = self.engine.rank, file["content"]
            theirs = file.get("fingerprints", [])
            theirs = theirs[rank] if self.engine.divides and rank < len(theirs) else file["fingerprint"]
            different = one_line(difference(theirs, self.fingerprint), 300)  # in the file's own words
            if different:
                raise ValueError(f"{self.path}: this checkpoint is of another run: {different}.")
            of_processes = content.pop("processes", [{}])
            saved = read(content | of_processes[rank if self.engine.divides else 0])
            with AllOrNothing(self.state.model, values=True), _undone(self.state.optimizer):
                self._take(saved)
        return True

    def _take(self, saved: dict[str, Any]) -> None:
        state = self.state
        self._attempt(state.model, saved["model"])
        settings = [dict(group) for group in state.optimizer.param_groups]
        self._attempt(state.optimizer, saved["optimizer"])
        _check_optimizer(state.optimizer, settings)
        self.callbacks.load_steppers(saved["callbacks"], self._attempt)
        self._attempt(self.stopping, saved["early_stopping"])
        self._attempt(self.engine.scaler, saved["scaler"])
        rows, stopped, step = saved["history"], saved["stopped"], saved["step"]
        if not (isinstance(rows, list) and all(isinstance(row, dict) and type(row["epoch"]) is int for row in rows)):
            raise ValueError("its history must be rows with an epoch")
        if not (stopped is None or isinstance(stopped, str)) or type(step) is not int or step < 0:
            raise ValueError(f"it must say after how many steps it was written. Got {step!r}, {stopped!r}")
        midway, topology = saved.get("midway"), saved.get("topology") or []
        if midway is not None and (type(midway["steps"]) is not int or len(midway["sums"]) != 4):
            raise ValueError(f"it must say after how many steps of its epoch it was written. Got {midway['steps']!r}")
        state.history.rows[:] = rows
        state.history.stopped, state.step = stopped, step
        state.epoch = max(0, len(state.history) - 1)
        if state.record is not None:
            state.record.topology = list(topology)
        self._loaded, self.midway = saved, midway

    def rewind(self) -> None:
        """Before the batches of an epoch that was left midway: put the generators back where that epoch began."""
        assert self.midway is not None
        with self._refusing("this run"):
            self._first = self.midway["first"]
            self._restore(self._first)

    def settle(self) -> None:
        """The last of a resume, when all that starts with a run (or with an epoch left midway) has started: hooks, then
        the random generators."""
        if self._loaded is None:
            return
        saved, self._loaded, self.midway = self._loaded, None, None
        with self._refusing("this run"):
            self.callbacks.load_hooks(saved["callbacks"], self._attempt)
            self._restore(saved["random"][self.engine.rank])

    def _capture(self) -> dict[str, Any]:
        return {"global": rng.capture(), "generators": [generator.get_state() for generator in self.generators]}

    def _restore(self, random: dict[str, Any]) -> None:
        for generator, generator_state in zip(self.generators, random["generators"], strict=True):
            generator.set_state(generator_state)
        rng.restore(random["global"])

    def _attempt(self, part: Any, state: Any) -> None:
        """`part.load_state_dict(state)`, with whatever it says about a state that does not fit as one line."""
        if part is None or state is None:
            return
        load: Callable[[Any], Any] = part.load_state_dict
        with self._refusing(type(part).__name__):
            load(state)

    @contextmanager
    def _refusing(self, who: str) -> Iterator[None]:
        """Whatever goes wrong in here with a file from outside, as one line that names the file."""
        try:
            yield
        except Exception as error:
            reason = one_line(error, 300)
            if reason.startswith(f"{self.path}: "):
                raise
            raise ValueError(f"{self.path}: {who} refuses this checkpoint ({reason}).") from None


@contextmanager
def _undone(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """After whatever goes wrong in here, the optimizer has its earlier state and settings."""
    before = optimizer.state_dict()
    try:
        yield
    except BaseException:
        optimizer.load_state_dict(before)
        raise


def _check_optimizer(optimizer: torch.optim.Optimizer, settings: list[dict[str, Any]]) -> None:
    """`ValueError` where what was loaded has not the settings that it had, or where a state has not its parameter's
    shape: fused optimizers read it by address."""
    for before, group in zip(settings, optimizer.param_groups, strict=True):
        for name, value in before.items():
            if name not in group or _sort(group[name]) != _sort(value):
                raise ValueError(f"the optimizer's {name} must be like {value!r:.50}. Got {group.get(name)!r:.50}")
    for parameter, state in optimizer.state.items():
        for name, tensor in state.items():
            if name in LIKE_PARAMETERS and tensor is not None and _shape(tensor) != _shape(parameter):
                raise ValueError(
                    f"the optimizer's {name} must be {_shape(parameter)}, as its parameter. Got {_shape(tensor)}"
                )


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _sort(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number" if math.isfinite(value) else "no number"
    return type(value).__name__


def _state(part: Any) -> Any:
    return part.state_dict() if hasattr(part, "state_dict") else None


def fingerprint(
    model: nn.Module, optimizer: torch.optim.Optimizer, callbacks: list[Any], **settings: Any
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be this run's: parameters by name and shape, and the settings.

    The number of connections of a sparse layer is left out: it is drawn, and the checkpoint brings its own.
    """
    parameters = {}
    for name, parameter in model.named_parameters():
        layer, _, leaf = name.rpartition(".")
        indptr = getattr(model.get_submodule(layer), "indptr", None) if leaf == "values" else None
        parameters[name] = list(parameter.shape) if indptr is None else ["connections", len(indptr) - 1]
    names = [type(callback).__name__ for callback in callbacks]
    return {"parameters": parameters, "optimizer": type(optimizer).__name__, "callbacks": names, **settings}


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
