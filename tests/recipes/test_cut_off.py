"""A recipe's run that is cut off between its last files is not taken for a finished one."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from filigree import recipes
from filigree.recipes import run
from filigree.train import Record

SETTINGS = ["training.epochs=1", "model.hidden=[24]", "seeds=[0]"]


class CutOff(Exception):
    pass


def test_between_the_model_and_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, save = recipes.load("demo", SETTINGS), Record.save

    def cut_off(self: Record, folder: Any = None) -> Path:
        if "final_train_accuracy" in self.metrics:
            raise CutOff
        return save(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "save", cut_off)
        with pytest.raises(CutOff):
            run(recipe, tmp_path, methods=["SET"], progress=False)
    folder = tmp_path / "SET-0"
    assert (folder / "model.safetensors").exists()
    assert Record.load(folder).finished  # by `fit`, whose part was done
    (folder / ".model.safetensors.0123abcd.tmp").write_bytes(b"half")
    run(recipe, tmp_path, methods=["SET"], progress=False, resume=True)
    assert "final_train_accuracy" in Record.load(folder).metrics
    assert sorted(file.name for file in folder.iterdir()) == ["model.safetensors", "record.json"]


def test_in_the_copy_of_the_best_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes.load("demo", [*SETTINGS, "data.validation=0.2", "search={lr: [0.01, 0.03]}"])

    def cut_off(source: Path, target: Path) -> None:
        target.mkdir()
        shutil.copy(source / "record.json", target)
        (target / "model.safetensors").write_bytes(b"half")
        raise CutOff

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", cut_off)
        with pytest.raises(CutOff):
            run(recipe, tmp_path, methods=["SET"], progress=False)
    assert not (tmp_path / "SET-0").exists()
    run(recipe, tmp_path, methods=["SET"], progress=False, resume=True)
    assert Record.load(tmp_path / "SET-0").finished
    assert not (tmp_path / "search" / "SET-0.tmp").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [("training.lr=0.5", "training.lr is 0.01 there, 0.5 is asked for"), ("data.test_size=0.3", "data.test_size is")],
)
def test_an_interrupted_run_of_other_settings_is_refused(tmp_path, monkeypatch, setting, message):
    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    recipe = recipes.load("demo", ["seeds=[0]", "training.epochs=3", "training.lr=0.01"])
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("filigree.io.saving"), "save", cut)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path, methods=["SET"], progress=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = recipes.load("demo", ["seeds=[0]", "training.epochs=3", "training.lr=0.01", setting])
    with pytest.raises(recipes.RecipeError, match=f"holds an interrupted run of other settings: {message}"):
        run(other, tmp_path, methods=["SET"], progress=False, resume=True)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run(recipe, tmp_path, methods=["SET"], progress=False, resume=True)
