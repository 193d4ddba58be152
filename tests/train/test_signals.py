"""SIGINT and SIGTERM: the step ends, the run is saved within its epoch, and goes on bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import MAKERS, Maker, blobs, equal, evolved, go, plain, timeless

import filigree as fg
from filigree.io.storage import read_state
from filigree.train import FitState, Record, fit
from filigree.train.signals import StopRequest, stop_on_signals, terminate


class Signal:
    """Sends this process a signal at the end of step `at`."""

    def __init__(self, at: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.at, self.number = at, number

    def on_step_end(self, state: FitState) -> None:
        if state.step == self.at:
            signal.raise_signal(self.number)


def gradient() -> Any:
    model, optimizer, options = evolved()
    return model, optimizer, options | {"callbacks": [fg.Evolution(model, optimizer, 0.3, epochs=6, grow="gradient")]}


class Epochs:
    """A hook that begins every epoch anew, and adds up over its steps."""

    def on_epoch_start(self, state: FitState) -> None:
        self.sum = torch.rand(1).item()

    def on_step_end(self, state: FitState) -> None:
        self.sum += 1

    def on_epoch_end(self, state: FitState) -> None:
        state.history.rows[-1]["sum"] = self.sum

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self.sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sum = state["sum"]


def hooked() -> Any:
    model, optimizer, options = plain()
    return model, optimizer, options | {"callbacks": [Epochs()]}


@pytest.mark.parametrize("make", [*MAKERS, gradient, hooked])
def test_a_run_saved_within_an_epoch_goes_on_bit_for_bit(tmp_path: Path, make: Maker) -> None:
    model, optimizer, history = go(make, tmp_path / "whole")
    for at in (3, 18, 20, 30):  # in the first epoch; twice in the third; in a later one
        with pytest.raises(SystemExit) as raised:
            go(make, tmp_path / "parts", resume=True, callbacks=[Signal(at)])
        assert raised.value.code == 143
        saved = read_state(tmp_path / "parts" / "checkpoint.safetensors")["content"]
        assert saved["step"] == at  # the step was ended, and none begun
        assert saved["midway"]["steps"] > 0
    again, again_optimizer, again_history = go(make, tmp_path / "parts", resume=True)
    assert equal(dict(model.state_dict()), dict(again.state_dict()))
    assert equal(optimizer.state_dict(), again_optimizer.state_dict())
    assert equal(timeless(history.rows), timeless(again_history.rows))


def test_in_the_last_step_of_an_epoch_the_epoch_ends_first(tmp_path: Path) -> None:
    whole, _, _ = go(gradient, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(gradient, tmp_path / "parts", callbacks=[Signal(16, signal.SIGINT)])
    saved = read_state(tmp_path / "parts" / "checkpoint.safetensors")["content"]
    assert (len(saved["history"]), saved["midway"]) == (2, None)
    again, _, _ = go(gradient, tmp_path / "parts", resume=True)
    assert equal(dict(whole.state_dict()), dict(again.state_dict()))


def test_a_signal_in_the_last_step_of_all_comes_after_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(plain, tmp_path, callbacks=[Signal(48, signal.SIGINT)])
    assert len(read_state(tmp_path / "checkpoint.safetensors")["content"]["history"]) == 6


def test_an_epoch_whose_loss_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    def poison(x: torch.Tensor) -> torch.Tensor:
        return x * float("nan") if len(steps) > 20 else x

    steps: list[int] = []
    callbacks = [lambda state: None, Counter(steps), Signal(25)]
    with pytest.raises(FloatingPointError, match="in epoch 2"):
        go(plain, tmp_path, callbacks=callbacks, augment=poison)
    saved = read_state(tmp_path / "checkpoint.safetensors")["content"]
    assert (len(saved["history"]), saved["midway"]) == (2, None)


class Counter:
    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_step_end(self, state: FitState) -> None:
        self.steps.append(state.step)


def test_without_a_checkpoint_a_signal_unwinds_at_once() -> None:
    model, optimizer, _ = plain()
    seen: list[int] = []
    with pytest.raises(SystemExit):
        fit(model, blobs(), optimizer=optimizer, epochs=2, batch_size=16, callbacks=[Signal(3), Counter(seen)])
    assert seen == [1, 2]  # the hook after it no longer saw the third step


def test_the_second_signal_ends_a_run_at_once_and_the_first_one_a_forked_helper() -> None:
    request = StopRequest()
    request.note(signal.SIGINT, None)
    assert request.number == signal.SIGINT
    with pytest.raises(SystemExit):
        request.note(signal.SIGTERM, None)
    helper = StopRequest()
    helper._process = 0  # as after a fork
    with pytest.raises(KeyboardInterrupt):
        helper.note(signal.SIGINT, None)


def test_a_signal_after_the_last_step_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signals(saves=True):
        signal.raise_signal(signal.SIGINT)
    StopRequest().leave()  # none came: goes on


def test_the_command_lines_handler_is_replaced_and_put_back() -> None:
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with stop_on_signals(saves=True) as request:
            signal.raise_signal(signal.SIGTERM)
            assert request.number == signal.SIGTERM
            request.number = 0
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_killed_runs_record_keeps_the_snapshots_of_every_epoch_it_kept(tmp_path: Path) -> None:
    """The checkpoint is written before the record: a kill between them must not cost the epoch's snapshot."""

    def snapshot(state: FitState) -> None:
        assert state.record is not None
        state.record.topology.append(
            {"epoch": state.epoch, "layer": "fc1", "in_features": 8, "out_features": 40, "nnz": 1, "fan_in": [],
             "fan_out": []}
        )  # fmt: skip

    class Killed(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        save = Record.save

        def die(self: Record, folder: Any = None) -> Path:
            if len(self.history) == 3:
                raise Killed
            return save(self, folder)

        patch.setattr(Record, "save", die)
        with pytest.raises(Killed):
            go(evolved, tmp_path, callbacks=[snapshot], record=tmp_path)
    go(evolved, tmp_path, callbacks=[snapshot], record=tmp_path, resume=True)
    assert [row["epoch"] for row in Record.load(tmp_path).topology] == [*range(6)]
