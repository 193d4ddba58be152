"""The summary of an experiment's runs: one JSON file with findings, figures, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from filigree.io.storage import write_json
from filigree_papers.reproduce.findings import Finding

FILE = "summary.json"
MIXED = "mixed"  # in place of a hash: not all runs have the same


class Check(pydantic.BaseModel, extra="forbid"):
    """One run of a record, made again by a later code: `filigree reproduce --check`.

    Attributes:
        case, seed, part: which run, and what of it: "one run", "its first evaluation", "its first epoch".
        figures, agree: how many figures both have, and how many of them agree. agrees: enough do.
        worst: the figure that is furthest apart, in words.
        commit, dirty, finished: by which code, and when. config: the configuration of that code.
        files, code: the sources that the run executed, and a hash of them.
    """

    case: str
    seed: int
    part: str
    figures: int
    agree: int
    agrees: bool
    worst: str
    commit: str | None = None
    dirty: bool = False
    finished: str
    config: str
    files: list[str]
    code: str


class RunSummary(pydantic.BaseModel, extra="forbid"):
    """What `filigree reproduce` writes.

    Attributes:
        name, quick, settings: what was run. complete: the seeds of each case that are done.
        commit, dirty, machine, versions: of the newest run. code, config: hashes of the sources and of all that was
            to run; None: not known; "mixed": not the same in all runs.
        finished: when the newest run ended. seconds: of all runs, None: not known; estimated: not measured.
        findings: the fields of each `Finding`. notes: what a reader should know. rows: the figures.
        check: whether today's code still gives these figures.
    """

    format: Literal["filigree-summary/1"] = "filigree-summary/1"
    name: str
    quick: bool = False
    settings: list[str] = []
    complete: dict[str, list[int]] = {}
    commit: str | None = None
    dirty: bool = False
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    code: str | None = None
    config: str | None = None
    finished: str | None = None
    seconds: float | None = None
    estimated: bool = False
    findings: list[dict[str, Any]] = []
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    check: Check | None = None

    @pydantic.field_validator("findings")
    @classmethod
    def _of_findings(cls, findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        pydantic.TypeAdapter(list[Finding]).validate_python(findings)
        return findings

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump())

    def save_over(self, path: Path) -> None:
        """Write it in place of an earlier one, whose check is kept where the runs are the same."""
        try:
            before = RunSummary.load(path)
        except (FileNotFoundError, ValueError):
            before = RunSummary(name="")
        same = (before.complete, before.finished) == (self.complete, self.finished)
        self.model_copy(update={"check": before.check if same else None}).save(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """
        Raises:
            ValueError: not a summary of this format, in one line that names the file.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(
                f"{path}: not a summary of the present format ({where + ': ' if where else ''}{first['msg']})."
            ) from None


def common(hashes: Sequence[str | None]) -> str | None:
    """The hash that all have; None where none has one; else `MIXED`."""
    different = set(hashes)
    return different.pop() if len(different) == 1 else MIXED if different else None
