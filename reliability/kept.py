"""What the scripts of this folder show while they run, and the JSON they leave."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from filigree.io.storage import write_json
from filigree.train import Record


class Line:
    """Shows a line of progress: in place on a terminal, else every ten seconds."""

    def __init__(self) -> None:
        self._due = 0.0

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + 10
            print(text, file=sys.stderr, flush=True)


def keep(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures with versions, machine and commit, and print them."""
    start = Record.start()
    head = {"date": start.started, "commit": start.commit, "dirty": start.dirty, "versions": start.versions,
            "machine": start.machine}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, head | figures)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    for name, value in figures.items():
        print(f"{name}: {value}")
    print(f"wrote {path}")
