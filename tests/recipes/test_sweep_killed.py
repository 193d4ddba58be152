"""A search whose processes are killed or fail."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import optuna
import pytest

from filigree.recipes import RecipeError, Sweep, sweep
from filigree.train import Record

module: Any = importlib.import_module("filigree.recipes.sweep")  # as an attribute that name is the function
RECIPE = str(Path(__file__).with_name("asymmetric.yaml"))
SETTINGS = ("data.name=digits", "data.validation=0.2", "training.epochs=30", "seeds=[0]", "model.hidden=[24]")


@pytest.mark.long("starts and kills a search of several processes")
def test_a_killed_process_is_reported_and_its_trial_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill_the_other(*_: Any) -> None:
        ends = time.monotonic() + 120
        while not list(tmp_path.glob("trial-*/topk-0/checkpoint.safetensors")) and time.monotonic() < ends:
            time.sleep(0.01)
        multiprocessing.active_children()[0].kill()

    wanted = Sweep(RECIPE, {"k": "2:20:log"}, "topk", settings=SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_work", kill_the_other)  # in this process only
        with pytest.raises(RuntimeError, match=r"1 of 2 processes ended with exit code -9: it was killed .* kept in"):
            sweep(wanted, tmp_path, trials=1, jobs=2)
    (killed,) = trials(tmp_path)
    assert killed.state == optuna.trial.TrialState.RUNNING
    found = sweep(wanted, tmp_path, trials=1)
    assert [row["values"] for row in found["trials"]] == [killed.params]
    record = Record.load(tmp_path / "trial-0000" / "topk-0")
    assert record.finished
    assert any(note.startswith("Resumed after epoch") for note in record.notes)


def trials(out: Path) -> list[Any]:
    return list(optuna.load_study(study_name="sweep", storage=module._storage(out)).trials)


def test_what_goes_wrong_in_a_helper_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("Unable to allocate\n3 GiB.")

    monkeypatch.setattr(module, "_work", fail)
    errors: SimpleQueue[str] = SimpleQueue()
    with pytest.raises(SystemExit) as raised:
        module._help(errors, None, tmp_path)
    assert raised.value.code == 1
    assert errors.get_nowait() == "MemoryError: Unable to allocate 3 GiB"


@pytest.mark.long("starts and kills a search of several processes")
def test_helpers_end_with_a_killed_search_before_the_next_begins(tmp_path: Path) -> None:
    settings = [f"--set={setting}" for setting in SETTINGS]
    command = [
        sys.executable, "-m", "filigree.cli", "sweep", RECIPE, *settings, "--set=training.epochs=2000",
        "--over=k=2:20", "--method=topk", "--trials=6", "--jobs=2", f"--out={tmp_path}",
    ]  # fmt: skip
    search = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        ends = time.monotonic() + 120
        while len(list(tmp_path.glob("trial-*/topk-0/checkpoint.safetensors"))) < 2 and time.monotonic() < ends:
            time.sleep(0.05)
        with pytest.raises(RecipeError, match="another search is at work there"), module._alone(tmp_path, patience=0.3):
            pass
        search.kill()
        search.wait()
        with module._alone(tmp_path, patience=60):  # the helper has ended
            before = len(trials(tmp_path))
        assert before == 2
    finally:
        with suppress(ProcessLookupError):
            os.killpg(search.pid, signal.SIGKILL)
