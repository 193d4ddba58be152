"""Is every file of a folder whole, and are two runs the same?"""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

import filigree as fg
from filigree.io.storage import read_state
from filigree.train import Record

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_CLOCK = re.compile(r"seconds|elapsed|joules|rewire_share|train_seconds")


def leftovers(folder: Path) -> list[Path]:
    """What killed processes left half-written, under names that nothing reads."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return [file for file in files if LEFTOVER.fullmatch(file.name) or file.relative_to(folder).match("search/*.tmp/*")]


def check(folder: Path) -> int:
    """Read every file that bears a final name. Returns how many there are.

    Raises:
        ValueError: one that is not whole, or of a kind that is not known here, in one line that names it.
    """
    left, count = set(leftovers(folder)), 0
    for file in sorted(folder.rglob("*")):
        if file.is_dir() or file in left:
            continue
        if file.name == "record.json":
            Record.load(file)
        elif file.name == "checkpoint.safetensors":
            content = read_state(file)["content"]
            if len(content["history"]) and not content["model"]:
                raise ValueError(f"{file}: a checkpoint without a model.")
        elif file.suffix == ".safetensors":
            fg.load(file)
        elif file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".db":
            with closing(sqlite3.connect(file)) as database:
                if database.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                    raise ValueError(f"{file}: a damaged database.")
        elif file.suffix == ".html":
            if not file.read_text().endswith("</html>"):
                raise ValueError(f"{file}: cut off.")
        elif file.suffix != ".lock":  # nothing is in that
            raise ValueError(f"{file}: a file that no one expects.")
        count += 1
    return count


def differences(one: Path, other: Path) -> list[str]:
    """Where two folders differ: weights by the bit, records but for the clock; leftovers are not looked at."""
    names = set()
    for folder in (one, other):
        left = leftovers(folder)
        names |= {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and file not in left}
    differences = ((name, _difference(one / name, other / name)) for name in sorted(names))
    return [f"{name} ({what})" for name, what in differences if what]


def _difference(one: Path, other: Path) -> str:
    """The first place in which two files differ, or nothing."""
    if not (one.is_file() and other.is_file()):
        return "one is missing"
    if one.suffix == ".safetensors":
        return _first(read_state(one), read_state(other))
    return _first(_timeless(one), _timeless(other)) if one.name == "record.json" else ""  # a page shows times


def _timeless(file: Path) -> dict[str, Any]:
    record = Record.load(file)
    rows = [_without_clock(row) for row in record.history]
    return {
        "history": rows, "metrics": _without_clock(record.metrics), "topology": record.topology,
        "config": record.config, "finished": record.finished is not None, "cost": sorted(record.cost),
    }  # fmt: skip


def _without_clock(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not _CLOCK.search(key)}


def _first(a: Any, b: Any, place: str = "") -> str:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return "" if a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) else place
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next((what for key in a if (what := _first(a[key], b[key], f"{place}.{key}"))), "")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return next((what for i in range(len(a)) if (what := _first(a[i], b[i], f"{place}[{i}]"))), "")
    return "" if type(a) is type(b) and (a == b or (a != a and b != b)) else place or "all of it"
