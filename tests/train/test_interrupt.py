"""Killed, interrupted or out of disk: the last checkpoint is whole, nothing half-written stays, and the run goes on."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

import filigree as fg
from filigree.io.storage import read_state
from filigree.train import FitState, History, Record, fit, progress, progress_columns, seed_everything


class Do:
    """Calls `what` in the middle of the third epoch."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def on_step_end(self, state: FitState) -> None:
        if state.step == 20:
            self.what()


def train(
    folder: Path | str, hook: Any = lambda state: None, resume: bool = False, **options: Any
) -> tuple[nn.Module, History]:
    """Six epochs of eight steps, with dropout and rewiring; a run in another process does the same."""
    torch.set_num_threads(1)
    seed_everything(0)
    model = fg.models.mlp([8, 30, 3], dropout=0.3)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["fc1"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    data = (torch.randn(120, 8), torch.randint(3, (120,)))
    options = {"record": folder, "progress": False} | options
    history = fit(
        model, data, optimizer=optimizer, epochs=6, batch_size=16, checkpoint=folder, resume=resume,
        callbacks=[fg.Evolution(model, optimizer, 0.3, epochs=6), hook], **options,
    )  # fmt: skip
    return model, history


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return dict(train(tmp_path_factory.mktemp("whole"))[0].state_dict())


def finishes(folder: Path, whole: dict[str, torch.Tensor]) -> bool:
    """Whether the run goes on to the same end, and leaves only its two files."""
    model, history = train(folder, resume=True)
    record = Record.load(folder)
    return (
        all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())
        and history["epoch"] == [*range(6)] == [row["epoch"] for row in record.history]
        and record.finished is not None
        and names(folder) == ["checkpoint.safetensors", "record.json"]
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
import test_interrupt as it
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
{code}
"""


@pytest.mark.long("starts and kills processes")
@pytest.mark.parametrize(
    ("code", "left"),
    [
        ("it.train(sys.argv[1], it.Do(die))", []),
        ("it.train(sys.argv[1], it.Do(lambda: setattr(os, 'fsync', die)))", [".checkpoint.safetensors.*.tmp"]),
    ],
    ids=["in mid-epoch", "while it writes"],
)
def test_kill_9_then_resume_equals_uninterrupted(
    tmp_path: Path, whole: dict[str, torch.Tensor], code: str, left: list[str]
) -> None:
    script = KILLED.format(here=str(Path(__file__).parent), code=code)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=os.environ | {"PYTHONPATH": path}, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert len(read_state(tmp_path / "checkpoint.safetensors")["content"]["history"]) == 2
    assert Record.load(tmp_path).finished is None
    assert [p for pattern in left for p in tmp_path.glob(pattern)] == [
        p for p in tmp_path.iterdir() if p.suffix == ".tmp"
    ]
    assert len(names(tmp_path)) == 2 + len(left)
    assert finishes(tmp_path, whole)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_in_mid_epoch_leaves_a_whole_checkpoint(
    tmp_path: Path, whole: dict[str, torch.Tensor], number: signal.Signals, error: type[BaseException]
) -> None:
    with pytest.raises(error) as raised:
        train(tmp_path, Do(lambda: signal.raise_signal(number)))
    if isinstance(raised.value, SystemExit):
        assert raised.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert names(tmp_path) == ["checkpoint.safetensors", "record.json"]
    record = Record.load(tmp_path)
    assert (len(record.history), record.finished) == (2, None)
    assert finishes(tmp_path, whole)
    assert "Resumed after epoch 1." in Record.load(tmp_path).notes


def test_a_handler_of_the_users_own_is_kept() -> None:
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        fit(
            model := nn.Linear(2, 2), (torch.zeros(4, 2), torch.zeros(4).long()), epochs=1,
            optimizer=torch.optim.SGD(model.parameters()), callbacks=lambda state: signal.raise_signal(signal.SIGTERM),
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [1]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=str)
def test_a_full_disk_or_ctrl_c_while_writing_leaves_the_old_checkpoint(
    tmp_path: Path, whole: dict[str, torch.Tensor], failure: BaseException
) -> None:
    before: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:

        def fill() -> None:
            before.append((tmp_path / "checkpoint.safetensors").read_bytes())
            patch.setattr(os, "fsync", fail)

        def fail(*_: Any) -> None:
            raise failure

        with pytest.raises(type(failure)) as raised:
            train(tmp_path, Do(fill))
    if isinstance(raised.value, OSError):
        assert raised.value.errno == errno.ENOSPC
        assert "checkpoint.safetensors" in str(raised.value)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before[0]
    assert names(tmp_path) == ["checkpoint.safetensors", "record.json"]
    assert finishes(tmp_path, whole)


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What `fit` shows, as on a terminal."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    return shown


def no_threads_but(before: set[threading.Thread]) -> bool:
    """Whether the bar's thread ends (rich tells it to, and does not wait)."""
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    return set(threading.enumerate()) <= before


def test_the_bar_shows_the_run_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, before = terminal(monkeypatch), set(threading.enumerate())
    train(tmp_path, progress=None, record=Record.start(method="EXD"))
    text = shown.getvalue()
    for part in ("EXD", "epoch", "/6", "loss", "train ", "steps/s"):
        assert part in text
    assert text.rstrip().endswith("\x1b[2K")  # the line is erased at the end
    assert no_threads_but(before)


def test_an_interrupt_closes_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, before = terminal(monkeypatch), set(threading.enumerate())

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Do(interrupt), progress=None)
    assert shown.getvalue().rfind("\x1b[?25h") > shown.getvalue().rfind("\x1b[?25l") >= 0  # the cursor is back
    assert no_threads_but(before)


def test_runs_share_a_progress_of_the_callers(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress(*progress_columns(), console=console) as shared:
        train(tmp_path / "a", progress=shared, record=Record.start(method="SET"))
        train(tmp_path / "b", progress=shared, record=Record.start(method="EXD"))
        assert [(task.description, task.finished) for task in shared.tasks] == [("SET", True), ("EXD", True)]
        assert shared.live.is_started


def test_without_a_terminal_lines_come_on_request_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, progress=None)
    assert capsys.readouterr() == ("", "")
    train(tmp_path, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line[:28] for line in err.splitlines()] == [f"SparseSequential epoch {i}/6 l" for i in range(1, 7)]
