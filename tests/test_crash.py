"""Kill -9 in training, rewiring, checkpointing, compressing and saving: a short `make crash`."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

RELIABILITY = Path(__file__).parent.parent / "reliability"


def test_each_phase_is_known_by_functions_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RELIABILITY)
    phases = importlib.import_module("phases")
    for owners in phases.OWNERS.values():
        for owner, name in owners:
            assert callable(getattr(owner, name)), (owner, name)


@pytest.mark.long("kills processes at random moments for a minute")
def test_killed_at_random_moments_runs_go_on_to_the_same_end(tmp_path: Path) -> None:
    record = tmp_path / "crash.json"
    done = subprocess.run(
        [
            sys.executable, str(RELIABILITY / "crash.py"), "--kills", "5", "--seed", "2", "--minutes", "5",
            "--out", str(record),
        ],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(record.read_text())
    assert found["failures"] == []
    assert found["kills"] >= 5
    assert set(found["by_job"]) == {"train", "search", "compress", "report", "save"}
    assert set(found["ended_and_compared"]) == {"train", "search", "compress", "report"}
