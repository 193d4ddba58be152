"""Run records: what they hold, that they come back, and that anything else is refused in one line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from filigree.train import Record, fit


def a_record(folder: Path) -> Record:
    record = Record.start("demo", "EXD", 3, {"epsilon": 20.0, "where": ["fc*"]}, folder, "avx2", ["short"])
    record.history = [{"epoch": 0, "train_loss": 0.5, "seconds": 1.5, "elapsed": 1.5}]
    record.metrics, record.cost = {"test_accuracy": 0.9}, {"train_step_ms": {"median": 1.0, "low": 0.9, "high": 1.2}}
    record.topology = [
        {"epoch": 0, "layer": "0", "in_features": 4, "out_features": 3, "nnz": 5, "fan_in": [[1, 1], [2, 2]],
         "fan_out": [[1, 3], [2, 1]], "input_connectivity": [1, 1, 1, 2], "age": 0.5}  # type: ignore[typeddict-unknown-key]
    ]  # fmt: skip
    return record


def test_a_record_comes_back(tmp_path: Path) -> None:
    record = a_record(tmp_path / "new" / "run")
    path = record.save()
    for place in (path, path.parent):
        assert Record.load(place) == record
    plain = json.loads(path.read_text())
    assert plain["format"] == "filigree-record/1"
    assert "folder" not in plain
    assert set(plain["versions"]) == {"filigree", "torch", "numpy", "python"}
    assert set(plain["machine"]) == {"cpu", "cores", "threads", "memory_gib", "os", "isa"}
    assert plain["machine"]["isa"] == "avx2"
    assert plain["machine"]["threads"] == torch.get_num_threads()
    assert plain["finished"] is None
    with pytest.raises(ValueError, match="no folder is known"):
        Record.start().save()


def test_numbers_that_json_lacks_are_made_plain(tmp_path: Path) -> None:
    record = a_record(tmp_path)
    record.history.append({"epoch": np.int64(1), "train_loss": float("nan"), "train_accuracy": np.float32(0.5)})  # type: ignore[dict-item]
    record.save()
    assert Record.load(tmp_path).history[1] == {"epoch": 1, "train_loss": None, "train_accuracy": 0.5}


def test_the_commit_is_that_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert (Record.start().commit, Record.start().dirty) == (None, False)

    def git(*arguments: str) -> str:
        options = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *options, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert Record.start().commit is None  # no commit yet
    Path("file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert (Record.start().commit, Record.start().dirty) == (git("rev-parse", "HEAD"), False)
    Path("file").write_text("2")
    assert Record.start().dirty
    monkeypatch.setenv("PATH", "")
    assert (Record.start().commit, Record.start().dirty) == (None, False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(format="filigree-record/2"), "format: Input should be 'filigree-record/1'"),
        (lambda r: r.update(seed="3"), "seed: Input should be a valid integer"),
        (lambda r: r.update(history=[{"train_loss": 1.0}]), "every row needs an integer epoch"),
        (lambda r: r.update(history=[{"epoch": 0, "train_loss": "low"}]), "history.0.train_loss"),
        (lambda r: r["topology"][0].pop("fan_in"), "topology.0.fan_in: Field required"),
        (lambda r: r.update(more=1), "more: Extra inputs are not permitted"),
        (lambda r: r.update(notes="none"), "notes: Input should be a valid"),
    ],
)
def test_what_is_not_a_record_is_refused_by_field(tmp_path: Path, change: Any, words: str) -> None:
    path = a_record(tmp_path).save()
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=r"record.json: not a filigree record \(.*") as raised:
        Record.load(path)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff", '{"format": "filigree-record/1"'])
def test_what_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"record.json: not a filigree record") as raised:
        Record.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="json: there is no such record"):
        Record.load(tmp_path)


def train(**options: Any) -> Any:
    model = nn.Linear(4, 2)
    data = (torch.randn(20, 4), torch.randint(2, (20,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return fit(model, data, optimizer=optimizer, epochs=3, test=data, progress=False, **options)


def test_fit_writes_the_record_as_it_goes(tmp_path: Path) -> None:
    seen: list[tuple[int, str | None]] = []

    def look(state: Any) -> None:
        record = Record.load(tmp_path)
        seen.append((len(record.history), record.finished))
        state.record.topology.append({"epoch": state.epoch, "layer": "0", "in_features": 4, "out_features": 2, "nnz": 8,
                                      "fan_in": [[4, 2]], "fan_out": [[2, 4]]})  # fmt: skip

    history = train(record=tmp_path, callbacks=look, seed=5)
    assert seen == [(0, None), (1, None), (2, None)]
    record = Record.load(tmp_path)
    assert record.finished is not None
    assert record.finished >= record.started
    assert record.seed == 5
    assert record.config == {"model": "Linear", "optimizer": "SGD", "lr": 0.1, "epochs": 3, "batch_size": 128}
    assert record.history == history.rows
    assert record.metrics == history.metrics
    assert [snapshot["epoch"] for snapshot in record.topology] == [0, 1, 2]


def test_a_record_without_a_folder_stays_in_memory_and_one_with_keeps_what_was_said(tmp_path: Path) -> None:
    train(record=(record := Record.start(method="dense")))
    assert len(record.history) == 3
    assert record.finished
    mine = a_record(tmp_path)
    mine.history, mine.metrics = [], {"peak_mb": 3.0}
    train(record=mine)
    loaded = Record.load(tmp_path)
    assert (loaded.recipe, loaded.method, loaded.notes) == ("demo", "EXD", ["short"])
    assert {"peak_mb", "test_accuracy"} <= set(loaded.metrics)


def test_an_early_end_is_noted(tmp_path: Path) -> None:
    def stop(state: Any) -> None:
        state.stop = True

    train(record=tmp_path, callbacks=stop)
    assert Record.load(tmp_path).notes == ["Stopped early: a hook asked for it in epoch 0."]
