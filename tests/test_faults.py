"""A full disk, a read-only folder, signals, no memory: one line, the exit code, and the last good state kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "reliability" / "faults.py"
SCENARIOS = {
    "disk": (1, "No space left on device"),
    "readonly": (1, "Read-only file system"),
    "sigint": (130, "interrupted; the last checkpoint is intact"),
    "sigterm": (143, "terminated; the last checkpoint is intact"),
    "memory": (1, "out of memory (you tried to allocate"),
}


@pytest.mark.long("mounts full and read-only disks, signals and starves runs: two minutes")
def test_a_run_says_what_stopped_it_and_goes_on_to_the_same_end(tmp_path: Path, subtests: pytest.Subtests) -> None:
    record = tmp_path / "faults.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(record)], capture_output=True, text=True, timeout=600, check=False
    )
    assert record.exists(), done.stdout + done.stderr
    scenarios = json.loads(record.read_text())["scenarios"]
    for scenario, (code, words) in SCENARIOS.items():
        with subtests.test(scenario):
            figures = scenarios[scenario]
            if figures == "not tried: no mounts":
                pytest.skip("no file system may be mounted here")
            assert isinstance(figures, dict), figures
            assert figures["exit"] == code
            assert words in figures["said"]
            assert "--resume" in figures["said"]
            assert figures["epochs_kept"] >= 2
            assert figures["resumed_equal"] is True
    with subtests.test("the worker of a search"):
        worker = scenarios["worker"]
        assert isinstance(worker, dict), worker
        assert worker["exit"] == 1
        assert "out of memory (you tried to allocate" in worker["said"]
        assert "Go on with the same command" in worker["said"]
