"""Trackers: they are told the settings, every epoch and the end; TensorBoard's file says so when it is read back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from accelerate.tracking import GeneralTracker  # type: ignore[import-untyped]

import filigree as fg
from filigree.train import History, Record, Tracking
from filigree.train.stepping import listed


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(hook: Any, **options: Any) -> tuple[torch.nn.Module, History]:
    model = fg.models.mlp([6, 50, 3])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=2)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = torch.randn(40, 6), torch.randint(3, (40,))
    history = fg.fit(
        model, data, optimizer=optimizer, epochs=3, validation=data, progress=False,
        callbacks=[fg.Evolution(model, optimizer, 0.3, 3), *listed(hook)], **options,
    )  # fmt: skip
    return model, history


class Notes(GeneralTracker):  # type: ignore[misc]
    """A tracker that writes everything down."""

    name = "notes"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    @property
    def tracker(self) -> list[Any]:
        return self.calls

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.calls.append((step, values))

    def finish(self) -> None:
        self.calls.append("finish")


def test_a_tracker_of_ones_own_is_told_all_and_left_running() -> None:
    notes = Notes()
    record = Record(recipe="demo", method="SET", seed=4, config={"data": {"name": "digits"}, "hidden": [50], "x": None})
    model, history = train(Tracking(notes, config={"lr": 0.1}), record=record)
    settings, *epochs, (step, final) = notes.calls
    assert settings == {
        "epochs": 3, "optimizer": "SGD", "recipe": "demo", "method": "SET", "seed": 4, "data.name": "digits",
        "hidden": "[50]", "x": "None", "lr": 0.1,
    }  # fmt: skip
    rows = [{name: value for name, value in row.items() if name != "epoch"} for row in history]
    assert epochs == list(enumerate(rows))
    assert {"train_loss", "val_accuracy", "zeta", "seconds"} <= set(rows[0])
    assert step == 3
    assert final["final/val_accuracy"] == history.metrics["val_accuracy"]
    assert final["cost/parameters"] == sum(p.numel() for p in model.parameters())


def test_tensorboard_reads_back_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `track` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, history = train(Tracking("tensorboard", "run", tmp_path, {"data": {"name": "noise"}}))
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    losses = events.Scalars("train_loss")
    assert [point.step for point in losses] == [0, 1, 2]
    assert [point.value for point in losses] == pytest.approx(history["train_loss"])
    (parameters,) = events.Scalars("cost/parameters")
    assert parameters.value == sum(p.numel() for p in model.parameters())
    (settings,) = tmp_path.rglob("hparams.yml")
    assert "data.name: noise" in settings.read_text()


def test_a_tracker_is_finished_where_a_later_hook_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    monkeypatch.setattr("filigree.train.tracking._make", lambda *args: notes)

    def run(*hooks: Any) -> None:
        train([Tracking("tensorboard"), *hooks])

    run()
    assert notes.calls.count("finish") == 1
    with pytest.raises(ZeroDivisionError) as caught:
        run(lambda state: 1 / 0)
    del caught
    gc.collect()
    assert notes.calls.count("start") == notes.calls.count("finish") == 2


def test_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"tracker must be one of .*tensorboard.* Got 'paper'"):
        Tracking("paper")
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(ImportError, match=r"Tracking: mlflow is needed. pip install mlflow"):
        Tracking("mlflow")
