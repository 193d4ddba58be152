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
from filigree.train import records
from filigree.train.accelerator_engine import make_engine
from filigree.train.batches import Augment, augmenting, make_batches
from filigree.train.checkpoints import Checkpoint
from filigree.train.engine import Prepared
from filigree.train.evaluation import Loss, measure
from filigree.train.history import History, Row
from filigree.train.hooks import FitState, Stepper, collect, listed
from filigree.train.meter import Meter
from filigree.train.progress import Bar
from filigree.train.records import Record
from filigree.train.signals import Asked
from filigree.train.stopping import EarlyStopping

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from rich.progress import Progress


class Run:
    """A call of `fit`; the arguments are explained there."""

    def __init__(
        self, model: nn.Module, train: Any, optimizer: torch.optim.Optimizer, epochs: int, batch_size: int, loss: Loss,
        validation: Any, test: Any, each_epoch: Any, each_step: Any, hooks: Any, augment: Augment | None,
        early_stopping: EarlyStopping | None, checkpoint: str | Path | None, seed: int, accelerator: Accelerator | None,
        drop_last: bool, record: Record | str | Path | None, on_nan: str,
    ) -> None:  # fmt: skip
        self.engine = engine = make_engine(model, optimizer, accelerator)
        self.model, self.optimizer = engine.model, engine.optimizer
        self.loss, self.on_nan, self.history, self.stopping = loss, on_nan, History(), early_stopping
        _check_optimizer(self.model, self.optimizer)

        order = torch.Generator().manual_seed(seed)
        own = torch.Generator().manual_seed(seed + 1 + engine.rank)  # each process augments its shard in its own way
        where: dict[str, Any] = {
            "device": engine.device, "rank": engine.rank, "processes": engine.processes, "loader_of": engine.loader
        }  # fmt: skip
        self.train = make_batches(
            train, "train", batch_size, order=order, drop_last=drop_last, augment=augmenting(augment, own), **where
        )
        try:
            self.steps: int | None = len(self.train)
        except TypeError:  # a DataLoader of a stream has no length
            self.steps = None
        self.held_out = {
            prefix: make_batches(data, name, max(batch_size, 1024), **where)
            for prefix, name, data in (("val", "validation", validation), ("test", "test", test))
            if data is not None
        }
        if early_stopping is not None:
            early_stopping.check("val" in self.held_out, "test" in self.held_out)
            early_stopping.reset()
        self.each_epoch = [Stepper(thing, "each_epoch") for thing in listed(each_epoch)]
        self.each_step = [Stepper(thing, "each_step") for thing in listed(each_step)]
        self.events = collect(hooks)

        if engine.is_main and record is not None and not isinstance(record, Record):
            record = Record.start(
                seed=seed, folder=record, config=_config(self.model, self.optimizer, epochs, batch_size)
            )
        self.record = record if isinstance(record, Record) else None
        self.state = FitState(self.model, self.optimizer, epochs, self.history, self.record)
        self.checkpoint: Checkpoint | None = None
        if checkpoint is not None:
            parts = {
                "each_epoch": [stepper.inner for stepper in self.each_epoch],
                "each_step": [stepper.inner for stepper in self.each_step],
                "hooks": [hook for hook in listed(hooks) if hasattr(hook, "state_dict")],
            }
            batches = (self.train, *self.held_out.values())
            generators = {id(g): g for g in (order, own, *(g for each in batches for g in each.generators))}
            self.checkpoint = Checkpoint(
                checkpoint, engine, self.state, parts, early_stopping, list(generators.values()), seed=seed,
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

    def to_the_end(self, bar: Bar, asked: Asked) -> None:
        """The epochs that are left, and what follows the last; `asked` may end the run before."""
        state, history, stopping = self.state, self.history, self.stopping
        was_training = self.model.training
        self._emit("on_fit_start")
        try:
            with self.engine.prepared() as prepared:
                if self.checkpoint is not None and self.checkpoint.midway is None:
                    self.checkpoint.settle()
                for epoch in range(len(history), state.epochs):
                    if history.stopped:
                        break
                    state.epoch = epoch
                    self._epoch(prepared, bar, asked)
        finally:
            self.model.train(was_training)
        restores = stopping is not None and stopping.restore_best
        if stopping is not None and restores:
            stopping.restore(self.model)
        history.summarise(stopping.best_epoch if stopping is not None and restores else None)
        self._emit("on_fit_end")
        if self.record is not None:
            self._close_record(self.record)

    # -- an epoch ----------------------------------------------------------------------------------------------------

    def _epoch(self, prepared: Prepared, bar: Bar, asked: Asked) -> None:
        state, history = self.state, self.history
        steppers = (*self.each_epoch, *self.each_step)
        for stepper in steppers:
            stepper.seconds = 0.0
        self._emit("on_epoch_start")
        self.train.set_epoch(state.epoch)
        means, steps, seconds = self._steps(prepared, bar, asked)
        if not abs(means["loss"]) < float("inf"):
            self._not_finite(means["loss"], steps)
            return  # nothing of this epoch is kept
        row: Row = {"epoch": state.epoch} | {f"train_{name}": value for name, value in means.items()}
        for prefix, batches in self.held_out.items():
            means = measure(self.model, batches, self.loss, self.engine.total)
            row |= {f"{prefix}_{name}": value for name, value in means.items()}
        row["lr"] = float(self.optimizer.param_groups[0]["lr"])

        if self.stopping is not None and self.stopping.update(row, self.model):
            history.stopped = f"{self.stopping.metric} did not improve for {self.stopping.patience} epochs"
        else:
            for stepper in self.each_epoch:
                stepper.step(dict(row))
        seconds += sum(stepper.seconds for stepper in self.each_epoch)
        row["seconds"] = seconds
        row["elapsed"] = seconds + (history.rows[-1]["elapsed"] if history.rows else 0.0)
        rewiring = [stepper for stepper in steppers if stepper.rewires]
        if rewiring:
            applied = rewiring[0] in self.each_step or not history.stopped
            row["zeta"] = float(rewiring[0].inner.rate or 0.0) if applied else 0.0
            row["rewire_seconds"] = sum(stepper.seconds for stepper in rewiring)
        history.rows.append(row)
        self._emit("on_epoch_end")
        stop, number = self.engine.total(torch.tensor([float(state.stop), asked.number])).tolist()  # in any process
        if stop and not history.stopped:
            history.stopped = f"a hook asked for it in epoch {state.epoch}"
        if self.checkpoint is not None:
            self.checkpoint.save()
        if self.record is not None:
            self._save_record(self.record)
        bar.epoch(row, steps)
        if number and self.checkpoint is not None:
            asked.number = asked.number or signal.SIGTERM  # another process was asked: all end here, with one state
            asked.leave()

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

    def _steps(self, prepared: Prepared, bar: Bar, asked: Asked) -> tuple[dict[str, float], int, float]:
        """The steps of an epoch: the hot path, where a microsecond counts.

        Returns the mean loss and accuracy, the number of steps, and their seconds.
        """
        model, optimizer, backward = prepared
        loss_of, train, meter, state = self.loss, self.train, Meter(), self.state
        each_step = [stepper.fast() for stepper in self.each_step]
        hooks = self.events["on_step_end"]
        alone, clock = self.engine.processes == 1, time.perf_counter
        model.train()
        began = clock()
        batches, done, earlier = self._begin(meter)
        first = state.step - done
        # Left midway is an epoch of a known length, with a step still to come: growth by gradient reads the last one's.
        last = first + self.steps - 1 if alone and self.steps is not None and self.checkpoint is not None else -1
        for x, y in batches:
            optimizer.zero_grad()
            output = model(x)
            loss = loss_of(output, y)
            backward(loss if alone else loss * train.scale)
            optimizer.step()
            meter.add(loss, output, y)
            state.step += 1
            for step in each_step:
                step()
            if hooks:
                state.loss = loss.detach()
                for hook in hooks:
                    hook(state)
                if state.stop and alone:
                    break
            if not meter.finite and alone:  # several processes must leave the epoch together, at its end
                break
            if clock() >= bar.due:
                meter.flush()
                bar.tick(state.epoch, state.step - first, meter.loss / meter.samples)
            if asked.number and state.step <= last:
                self._leave(asked, meter, state.step - first, earlier + clock() - began)
        return meter.means(self.engine.total), state.step - first, earlier + clock() - began

    def _leave(self, asked: Asked, meter: Meter, steps: int, seconds: float) -> None:
        """Save the run within the epoch, and end it."""
        sums = meter.sums()
        if self.checkpoint is not None and meter.finite:
            self.checkpoint.save({"steps": steps, "sums": sums, "seconds": seconds})
            asked.leave()

    def _not_finite(self, value: float, steps: int) -> None:
        what = f"the training loss became {value} in epoch {self.state.epoch}, within its first {steps} steps"
        if self.on_nan == "raise":
            raise FloatingPointError(f"fit: {what}. A smaller learning rate may help.")
        self.history.stopped = what

    def _emit(self, event: str) -> None:
        for hook in self.events[event]:
            hook(self.state)

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
