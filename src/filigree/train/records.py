"""Run records: one JSON file that says what was run, with what, where, and what came of it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Literal, NotRequired, Self

import numpy as np
import pydantic
import torch
from typing_extensions import TypedDict

from filigree.io.storage import write_json
from filigree.optional import DISTRIBUTION

FILE = "record.json"
SEARCH = "search"  # the folder of a recipe's trials
_LARGEST = 256 << 20  # bytes of a file
Number = int | float | None


@pydantic.with_config(pydantic.ConfigDict(extra="allow", strict=True))
class Snapshot(TypedDict):
    """The topology of one layer after an epoch; more keys may follow (ages)."""

    epoch: int
    layer: str
    in_features: int
    out_features: int
    nnz: int
    fan_in: list[list[int]]  # [[degree, units of that degree], ...]
    fan_out: list[list[int]]
    input_connectivity: NotRequired[list[int]]  # connections of each input feature, of the first layer only


class _TimingRow(TypedDict):
    median: pydantic.FiniteFloat
    low: pydantic.FiniteFloat
    high: pydantic.FiniteFloat


class _DataRow(TypedDict, total=False):
    name: str | None
    sha256: str | None
    folds: int | None
    repeats: int | None
    test_size: pydantic.FiniteFloat | None
    input_shape: list[int]


class _ConfigRow(TypedDict, total=False):
    about: str
    data: _DataRow
    published: dict[str, pydantic.FiniteFloat]
    sweep: dict[str, Any]


class _Read(TypedDict):
    """What readers of a file rely on in the parts that are open to more."""

    config: _ConfigRow
    cost: dict[str, pydantic.FiniteFloat | _TimingRow | None]


_READ = pydantic.TypeAdapter(_Read)


class Record(pydantic.BaseModel, extra="forbid", strict=True):
    """The record of a run, `filigree-record/1`; `fit` fills in history, metrics and `finished`.

    Attributes:
        recipe, method, seed, config: what was asked for; `config` is all of it, resolved.
        versions, commit, dirty, machine, started: with what, where and when. `commit` is that of the working folder's
            git repository, `dirty` says whether its tracked files were changed.
        finished: when the run ended; None while it runs, or after it was killed.
        history: a row an epoch, see `History`. metrics: the final figures. cost: parameters, bytes, times.
        topology: snapshots. notes: what a reader of the figures should know.
        folder: where `save` puts `record.json`; not in the file.
    """

    format: Literal["filigree-record/1"] = "filigree-record/1"
    recipe: str = ""
    method: str = ""
    seed: int = 0
    config: dict[str, Any] = {}
    versions: dict[str, str] = {}
    commit: str | None = None
    dirty: bool = False
    machine: dict[str, Any] = {}
    started: str = ""
    finished: str | None = None
    history: list[dict[str, Number]] = []
    metrics: dict[str, Number] = {}
    cost: dict[str, Any] = {}
    topology: list[Snapshot] = []
    notes: list[str] = []
    folder: Path | None = pydantic.Field(None, exclude=True, repr=False)

    @classmethod
    def start(
        cls,
        recipe: str = "",
        method: str = "",
        seed: int = 0,
        config: dict[str, Any] | None = None,
        folder: str | Path | None = None,
        isa: str | None = None,
        notes: list[str] | None = None,
    ) -> Self:
        """A record of a run that begins now, here. `isa` is the instruction set that the kernels run on."""
        commit, dirty = _git()
        return cls(
            recipe=recipe, method=method, seed=seed, config=config or {}, versions=_versions(), commit=commit,
            dirty=dirty, machine=_machine(isa), started=now(), notes=list(notes or []),
            folder=None if folder is None else Path(folder),
        )  # fmt: skip

    def save(self, folder: str | Path | None = None) -> Path:
        """Write `record.json` into `folder` (by default the record's own), atomically. Returns the file's path."""
        target = Path(folder) if folder is not None else self.folder
        if target is None:
            raise ValueError("Record.save: no folder is known. Give folder=.")
        target.mkdir(parents=True, exist_ok=True)
        # Not model_dump: hooks may have added numpy numbers and nan, which write_json turns into plain ones and null.
        write_json(target / FILE, {name: getattr(self, name) for name in type(self).model_fields if name != "folder"})
        return target / FILE

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a record from its file or its folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: not a record, in one line that names file and field.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such record.")
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path}: not a filigree record (larger than {_LARGEST >> 20} MiB).")
        try:
            record = cls.model_validate_json(path.read_bytes())
            _READ.validate_python({"config": record.config, "cost": record.cost})
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(
                f"{path}: not a filigree record ({where + ': ' if where else ''}{first['msg']})."
            ) from None
        for row in record.history:
            if not isinstance(row.get("epoch"), int):
                raise ValueError(f"{path}: not a filigree record (history: every row needs an integer epoch).")
        record.folder = path.parent
        return record


def find_records(path: str | Path) -> list[Path]:
    """The record files in a folder and below, without those of a recipe's search; a file stands for itself.

    Raises:
        FileNotFoundError: no such path, or no record in it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such run.")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob(FILE) if SEARCH not in file.relative_to(path).parts)
    if not files:
        raise FileNotFoundError(f"{path}: there is no record.json in this folder.")
    return files


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    try:
        own = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        own = "unknown"
    return {
        "filigree": own, "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()
    }  # fmt: skip


def _git() -> tuple[str | None, bool]:
    """The commit of the working folder and whether tracked files differ from it; (None, False) where there is none."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, False


def _machine(isa: str | None) -> dict[str, Any]:
    try:
        info = Path("/proc/cpuinfo").read_text(errors="replace")
        cpu = next(line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    try:
        cores = len(os.sched_getaffinity(0))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # not on every system
        cores, memory = os.cpu_count() or 1, float("nan")
    return {
        "cpu": cpu, "cores": cores, "threads": torch.get_num_threads(), "memory_gib": round(memory, 1),
        "os": platform.platform(), "isa": isa,
    }  # fmt: skip
