"""Where figures come from: the code, the configuration, the commit and the machine of each run, beside the runs."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pydantic

import filigree
from filigree.io.storage import write_json
from filigree.train import Record
from filigree.train.records import now

SOURCES = {".py", ".cpp", ".h", ".yaml"}
# These show figures, give verdicts on them or export networks: none changes a row.
_APART = (
    "filigree/report/", "filigree/export/", "filigree/integrations/", "filigree/sklearn/", "filigree/cli/",
    "filigree_papers/commands.py", "filigree_papers/reproduce/documents.py", "filigree_papers/reproduce/documents.yaml",
    "filigree_papers/reproduce/listing.py", "filigree_papers/reproduce/everything.py",
    "filigree_papers/reproduce/findings.py", "filigree_papers/reproduce/claims.py", "filigree_papers/reproduce/bars.py",
    "filigree_papers/reproduce/check.py",
)  # fmt: skip
PACKAGES = {"filigree": Path(filigree.__file__).parent, "filigree_papers": Path(__file__).parent.parent}


class RunProvenance(pydantic.BaseModel, extra="forbid"):
    """Where the run of one case with one seed comes from.

    Attributes:
        config, code: hashes of what was to run, and of the two packages. None: not known, or begun by another code.
        commit, dirty, machine, versions: as in a `Record`.
        seconds: the time that all parts of the run took together. estimated: it was not measured.
        finished: when it ended; None while it runs.
    """

    config: str | None = None
    code: str | None = None
    commit: str | None = None
    dirty: bool = False
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    seconds: float | None = None
    estimated: bool = False
    finished: str | None = None

    @classmethod
    def begin(cls, config: str) -> RunProvenance:
        record = Record.start()
        return cls(config=config, code=code(), commit=record.commit, dirty=record.dirty, machine=record.machine,
                   versions=record.versions, seconds=0.0)  # fmt: skip

    def is_of(self, config: str) -> bool:
        """Whether this configuration and the present code made it."""
        return (self.config, self.code) == (config, code())

    def end(self) -> None:
        self.finished = now()


class Ledger:
    """The runs of a folder by case and seed, kept in its `provenance.json`."""

    FILE = "provenance.json"

    def __init__(self, folder: Path) -> None:
        self.path = folder / self.FILE
        self.runs = self._read()

    def _read(self) -> dict[tuple[str, int], RunProvenance]:
        runs: dict[tuple[str, int], RunProvenance] = {}
        if self.path.is_file():
            for key, value in json.loads(self.path.read_text()).items():
                case, _, seed = key.rpartition(".")
                runs[case, int(seed)] = RunProvenance.model_validate(value)
        return runs

    def save(self, *pairs: tuple[str, int]) -> None:
        """Write the runs of these pairs; the others stay as the file has them: another process may be writing them."""
        self.runs = self._read() | {pair: self.runs[pair] for pair in pairs}
        write_json(self.path, {f"{case}.{seed}": run.model_dump() for (case, seed), run in self.runs.items()})


@functools.cache
def code() -> str:
    """A hash of the sources that make rows. In an installed wheel those of the kernels are not among them."""
    return digest({name: path.read_text() for name, path in sources().items()})


def sources() -> dict[str, Path]:
    """The files of both packages that `code` hashes, by their names with the package in front."""
    files = {
        f"{package}/{file.relative_to(folder).as_posix()}": file
        for package, folder in PACKAGES.items() for file in folder.rglob("*") if file.suffix in SOURCES
    }  # fmt: skip
    return {name: files[name] for name in sorted(files) if not name.startswith(_APART)}


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits that stand for plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def source(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The text of a function, and the arguments that a `partial` gives it. What it calls is in `code`."""
    arguments: Mapping[str, Any] = {}
    if isinstance(function, functools.partial):  # a partial of one is one
        arguments, function = function.keywords, function.func
    return {"function": function.__qualname__, "arguments": arguments, "text": _text(function)}


_text = functools.cache(inspect.getsource)  # once: a file that is edited meanwhile has other lines there
