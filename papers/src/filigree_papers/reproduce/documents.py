"""The five documents: every table, figure and claim, what makes it again, and how long that takes (documents.yaml)."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Annotated, Any, Literal

import pydantic
import yaml

EntryState = Literal["full", "scaled", "needs data", "not made"]


class _Strict(pydantic.BaseModel, extra="forbid", frozen=True):
    pass


class Rerun(_Strict):
    """A reproduction that makes an entry again, or one of the reproduction's cases."""

    name: str
    case: str | None = None

    @property
    def command(self) -> str:
        return f"filigree reproduce {self.name}" + ("" if self.case is None else f" --case {self.case}")


def _rerun(given: Any) -> Any:
    return {"name": given} if isinstance(given, str) else given


class Entry(_Strict):
    """A table, a figure or a claim.

    Attributes:
        where: its place in the document.
        about: what it shows or claims, with the printed figures.
        by: what makes it again.
        state: full (at the document's setting), scaled (smaller), needs data (of the user's own), not made.
        reason: why it is not made, or only in part.
        assessment: where it is not reproduced, what we think the reason is, and the experiment that would tell.
        slip: the document's own mistake about it.
    """

    where: str
    about: str
    by: tuple[Annotated[Rerun, pydantic.BeforeValidator(_rerun)], ...] = ()
    state: EntryState
    reason: str = ""
    assessment: str = ""
    slip: str = ""

    @pydantic.model_validator(mode="after")
    def _is_made_or_says_why(self) -> Entry:
        if (self.state == "not made") == bool(self.by):
            raise ValueError(f"{self.where}: expected `by` where it is made, and there only. Got {self.state}.")
        if self.state == "not made" and not self.reason:
            raise ValueError(f"{self.where}: a `reason` is missing.")
        return self


class Document(_Strict):
    """One of the source documents.

    Attributes:
        cite: how it is cited everywhere, by author and year: "Srivastava 2022".
    """

    cite: str
    title: str
    entries: tuple[Entry, ...]

    @property
    def author(self) -> str:
        """The first author's name in lower case, by which the command line knows the document."""
        return self.cite.split()[0].lower()

    def key(self, entry: Entry) -> str:
        """The name of the entry in findings: "Srivastava 2022, Table 9.1"."""
        return f"{self.cite}, {entry.where}"


class _File(_Strict):
    expect: dict[str, float]
    stands: dict[str, str] = {}
    documents: tuple[Document, ...]


@functools.cache
def _file() -> _File:
    text = (resources.files(__package__) / "documents.yaml").read_text(encoding="utf-8")
    return _File.model_validate(yaml.safe_load(text))


def all_documents() -> list[Document]:
    """All five, from the package's own file."""
    return list(_file().documents)


def expected() -> dict[str, float]:
    """The estimated minutes of each reproduction, for those that have no record with times."""
    return _file().expect


def stands() -> dict[str, str]:
    """Why a record of an older code stands, by reproduction, where a check would take too long or differs."""
    return _file().stands


@functools.cache
def scaled() -> frozenset[str]:
    """The keys of the entries that are made smaller than their document's."""
    return frozenset(d.key(entry) for d in _file().documents for entry in d.entries if entry.state == "scaled")
