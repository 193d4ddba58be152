"""One run of `fit`: its arguments resolved, its epochs, its end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from filigree.io.storage import remove_leftovers
from filigree.modes import training
from filigree.train import records
from filigree.train.accelerator_engine import make_engine
from filigree.train.batches import Augment, augmenting, explaining, make_batches
from filigree.train.checkpoints import Checkpoint
from filigree.train.engine import Prepared
from filigree.train.evaluation import Loss, dtype_of, evaluate_batches, evaluation_batch
from filigree.train.history import History, Row
from filigree.train.labels import checked_loss, with_r2
from filigree.train.meter import Meter
from filigree.train.progress import Bar
from filigree.train.records import Record
from filigree.train.signals import StopRequest
from filigree.train.stepping import Callbacks, FitState
from filigree.train.stopping import EarlyStopping
from filigree.wrappers import check_module

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from rich.progress import Progress


_NAMES = {"val": "validation", "test": "test"}


class FitRun:
    """A call of `fit`; the arguments are explained there."""

    def __init__(
        self, model: nn.Module, train: Any, optimizer: torch.optim.Optimizer, epochs: int, batch_size: int,
        loss: Loss | None, validation: Any, test: Any, callbacks: Any, augment: Augment | None,
        early_stopping: EarlyStopping | None, checkpoint: str | Path | None, seed: int, accelerator: Accelerator | None,
        drop_last: bool, record: Record | str | Path | None, on_nan: str,
    ) -> None:  # fmt: skip
        check_module(model, "fit")
        if not isinstance(optimizer, torch.optim.Optimizer) and not hasattr(optimizer, "param_groups"):
            example = "torch.optim.Adam(model.parameters())"
            raise TypeError(f"fit: optimizer must be one of torch.optim, such as {example}. Got {optimizer!r}.")
        if loss is not None and (isinstance(loss, type) or not callable(loss)):
            raise TypeError(f"fit: loss must be a function, such as nn.MSELoss() or F.mse_loss. Got {loss!r}.")
        self.engine = engine = make_engine(model, optimizer, accelerator)
        self.model, self.optimizer = engine.model, engine.optimizer
        self.on_nan, self.history, self.stopping = on_nan, History(), early_stopping
        _check_optimizer(self.model, self.optimizer)

        order = torch.Generator().manual_seed(seed)
        rank, of_processes = engine.shard
        own = torch.Generator().manual_seed(seed + 1 + rank)  # each process augments its shard in its own way
        where: dict[str, Any] = {
            "device": engine.device, "rank": rank, "processes": of_processes, "loader_of": engine.loader,
            "dtype": dtype_of(self.model),
        }  # fmt: skip
        self.train = make_batches(
            train, "train", batch_size, order=order, drop_last=drop_last, augment=augmenting(augment, own), **where
        )
        try:
            self.steps: int | None = len(self.train)
        except TypeError:  # a DataLoader of a stream has no length
            self.steps = None
        self.held_out = {
            prefix: make_batches(data, name, max(batch_size, evaluation_batch(data)), **where)
            for prefix, name, data in (("val", "validation", validation), ("test", "test", test))
            if data is not None
        }
        named = {_NAMES[prefix]: batches for prefix, batches in self.held_out.items()}
        self.loss = loss or checked_loss("fit", {"train": self.train, **named})
        self.scored = (lambda means, batches: means) if loss else with_r2
        if early_stopping is not None:
            early_stopping.check("val" in self.held_out, "test" in self.held_out)
            early_stopping.reset()
        if engine.is_main and record is not None and not isinstance(record, Record):
            record = Record.start(
                seed=seed, folder=record, config=_config(self.model, self.optimizer, epochs, batch_size)
            )
        self.record = record if isinstance(record, Record) else None
        self.state = FitState(self.model, self.optimizer, epochs, self.history, self.record)
        self.callbacks = Callbacks(callbacks, self.state)
        self.rewiring = [stepper for stepper in self.callbacks.steppers if stepper.rewires]
        if self.steps is None and (by_step := [each.inner for each in self.rewiring if each.by_step]):
            raise ValueError(
                f"fit: {type(by_step[0]).__name__} rewires by step, which needs training data of a known length, as no "
                "rewiring may follow the last step. Got data without one."
            )
        self.checkpoint: Checkpoint | None = None
        if checkpoint is not None:
            batches = (self.train, *self.held_out.values())
            generators = {id(g): g for g in (order, own, *(g for each in batches for g in each.generators))}
            self.checkpoint = Checkpoint(
                checkpoint, engine, self.callbacks, early_stopping, list(generators.values()), seed=seed,
                batch_size=self.train.batch_size, samples=self.train.samples, processes=engine.processes,
                early_stopping=early_stopping is not None,
            )  # fmt: skip

    def start(self, resume: bool) -> None:
        """Open the files, and take up the checkpoint where that is wished and there is one."""
        resumed = False
        if self.checkpoint is not None:
            self.checkpoint.open()
            resumed = resume and self.checkpoint.load()
        if self.record is not None and self.engine.is_main:
            self._open_record(self.record, resumed)

    def bar(self, progress: Progress | bool | None) -> Bar:
        """The run's progress bar, shown by the main process."""
        label = (self.record.method if self.record is not None else "") or type(self.model).__name__
        return Bar(progress if self.engine.is_main else False, label, self.state.epochs, self.steps, len(self.history))

    def to_the_end(self, bar: Bar, request: StopRequest) -> None:
        """The epochs that are left, and what follows the last; a `request` may end the run before."""
        state, history, stopping = self.state, self.history, self.stopping
        steps = None if self.steps is None else state.epochs * self.steps - state.step
        self.callbacks.set_horizon(state.epochs - len(history), steps)
        self.callbacks.emit("on_fit_start")
        with training(self.model) as self.train_mode, self.engine.prepared() as prepared:
            if self.checkpoint is not None and self.checkpoint.midway is None:
                self.checkpoint.settle()
            for epoch in range(len(history), state.epochs):
                if history.stopped:
                    break
                state.epoch = epoch
                self._epoch(prepared, bar, request)
        restores = stopping is not None and stopping.restore_best
        if stopping is not None and restores:
            stopping.restore(self.model)
        history.summarise(stopping.best_epoch if stopping is not None and restores else None)
        self.callbacks.emit("on_fit_end")
        if self.record is not None:
            self._close_record(self.record)

    # -- an epoch ----------------------------------------------------------------------------------------------------

    def _epoch(self, prepared: Prepared, bar: Bar, request: StopRequest) -> None:
        state, history, callbacks = self.state, self.history, self.callbacks
        callbacks.rewire()  # what the end of a shorter run left out
        for stepper in callbacks.steppers:
            stepper.seconds = 0.0
        callbacks.emit("on_epoch_start")
        self.train.set_epoch(state.epoch)
        with explaining(self.train):
            means, steps, seconds = self._steps(prepared, bar, request)
        if not abs(means["loss"]) < float("inf"):
            self._not_finite(means["loss"], steps)
            return  # nothing of this epoch is kept
        means = self.scored(means, self.train)
        row: Row = {"epoch": state.epoch} | {f"train_{name}": value for name, value in means.items()}
        for prefix, batches in self.held_out.items():
            means = self.scored(evaluate_batches(self.model, batches, self.loss, self.engine.total), batches)
            row |= {f"{prefix}_{name}": value for name, value in means.items()}
        row["lr"] = float(self.optimizer.param_groups[0]["lr"])
        history.rows.append(row)
        within = callbacks.seconds
        self._times(seconds)
        if self.stopping is not None and self.stopping.update(row, self.model):
            history.stopped = f"{self.stopping.metric} did not improve for {self.stopping.patience} epochs"
        callbacks.end_epoch(stopped=bool(history.stopped))
        stop, number = self.engine.agreed(torch.tensor([float(state.stop), request.number])).tolist()  # in any process
        if stop and not history.stopped:
            history.stopped = f"a hook asked for it in epoch {state.epoch}"
        goes_on = not history.stopped and state.epoch + 1 < state.epochs
        if goes_on:
            callbacks.rewire()
        self._times(seconds + callbacks.seconds - within)
        if self.rewiring:
            first = self.rewiring[0]
            row["zeta"] = float(first.inner.rate or 0.0) if goes_on or first.by_step else 0.0
            row["rewire_seconds"] = sum(stepper.seconds for stepper in self.rewiring)
        if self.checkpoint is not None:
            self.checkpoint.save()
        if self.record is not None:
            self._save_record(self.record)
        bar.epoch(row, steps)
        if number and self.checkpoint is not None:
            request.number = request.number or signal.SIGTERM  # it came to another process: all end here, in one state
            request.leave()

    def _times(self, seconds: float) -> None:
        """Note in the last row how long its epoch took."""
        *earlier, row = self.history.rows
        row["seconds"] = seconds
        row["elapsed"] = seconds + (earlier[-1]["elapsed"] if earlier else 0.0)

    def _begin(self, meter: Meter) -> tuple[Iterator[Any], int, float]:
        """The epoch's batches, how many steps were taken before a resume within it, and in how many seconds."""
        checkpoint = self.checkpoint
        if checkpoint is None or checkpoint.midway is None:
            if checkpoint is not None:
                checkpoint.begin()
            return iter(self.train), 0, 0.0
        midway = checkpoint.midway
        checkpoint.rewind()
        batches = iter(self.train)
        for _ in zip(range(midway["steps"]), batches, strict=False):
            pass
        checkpoint.settle()
        meter.resume(midway["sums"])
        return batches, midway["steps"], midway["seconds"]

    def _steps(self, prepared: Prepared, bar: Bar, request: StopRequest) -> tuple[dict[str, float], int, float]:
        """The steps of an epoch: the hot path, where a microsecond counts.

        Returns the mean loss and accuracy, the number of steps, and their seconds.
        """
        model, optimizer, backward = prepared
        loss_of, train, meter, state, callbacks = self.loss, self.train, Meter(), self.state, self.callbacks
        calls = callbacks.of_a_step()
        alone, clock = self.engine.processes == 1, time.perf_counter
        self.train_mode(model)
        began = clock()
        batches, done, earlier = self._begin(meter)
        first = state.step - done
        last = -1 if self.steps is None else first + self.steps  # the number of the epoch's last step
        # Left midway is an epoch of a known length, with a step still to come: growth by gradient reads the last one's.
        may_leave = alone and self.checkpoint is not None
        for x, y in batches:
            optimizer.zero_grad()
            output = model(x)
            loss = loss_of(output, y)
            backward(loss if alone else loss * train.scale)
            optimizer.step()
            meter.add(loss, output, y)
            state.step += 1
            if calls:
                state.loss = loss.detach()
                for call in calls:
                    call(state)
                if state.stop and alone:
                    break
                if callbacks.due and state.step != last:
                    callbacks.rewire()
            if not meter.finite and alone:  # several processes must leave the epoch together, at its end
                break
            if clock() >= bar.due:
                meter.flush()
                bar.tick(state.epoch, state.step - first, meter.loss / meter.samples)
            if request.number and may_leave and state.step < last:
                self._leave(request, meter, state.step - first, earlier + clock() - began)
        return meter.means(self.engine.total), state.step - first, earlier + clock() - began

    def _leave(self, request: StopRequest, meter: Meter, steps: int, seconds: float) -> None:
        """Save the run within the epoch, and end it."""
        sums = meter.sums()
        if self.checkpoint is not None and meter.finite:
            self.checkpoint.save({"steps": steps, "sums": sums, "seconds": seconds})
            request.leave()

    def _not_finite(self, value: float, steps: int) -> None:
        what = f"the training loss became {value} in epoch {self.state.epoch}, within its first {steps} steps"
        if self.on_nan == "raise":
            raise FloatingPointError(f"fit: {what}. A smaller learning rate may help.")
        self.history.stopped = what

    # -- the record --------------------------------------------------------------------------------------------------

    def _open_record(self, record: Record, resumed: bool) -> None:
        if record.folder is not None:
            remove_leftovers(record.folder / records.FILE)
        if resumed and record.folder is not None and (record.folder / records.FILE).is_file():
            earlier, done = Record.load(record.folder), len(self.history)
            record.started = earlier.started
            _note(record, *earlier.notes)
            if done < self.state.epochs and not self.history.stopped:
                _note(record, f"Resumed after epoch {done - 1}." if done else "Resumed in epoch 0.")
        record.history = self.history.rows
        self._save_record(record)

    def _close_record(self, record: Record) -> None:
        record.metrics |= self.history.metrics
        record.finished = records.now()
        if self.history.stopped:
            _note(record, f"Stopped early: {self.history.stopped}.")
        self._save_record(record)

    def _save_record(self, record: Record) -> None:
        if record.folder is not None and self.engine.is_main:
            record.save()


def _note(record: Record, *notes: str) -> None:
    record.notes = list(dict.fromkeys([*record.notes, *notes]))


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that steps parameters the model no longer has, and not those it has."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [name for key, name in trained.items() if key not in held]
    if missing and held - {id(parameter) for parameter in model.parameters()}:
        raise ValueError(
            f"fit: the optimizer holds parameters that are not the model's, and lacks {missing[0]!r}. "
            "Make the optimizer after convert_, from the model's own parameters."
        )


def _config(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, batch_size: int) -> dict[str, Any]:
    """What `fit` itself knows of a run's settings, for a record that was asked for by its folder only."""
    return {
        "model": type(model).__name__, "optimizer": type(optimizer).__name__,
        "lr": float(optimizer.param_groups[0]["lr"]), "epochs": epochs, "batch_size": batch_size,
    }  # fmt: skip
