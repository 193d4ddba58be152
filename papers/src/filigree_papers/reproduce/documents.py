"""The five documents: every table, figure and claim, what makes it again, and how long that takes (documents.yaml)."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Annotated, Any, Literal

import pydantic
import yaml

State = Literal["full", "scaled", "needs data", "not made"]


class _Strict(pydantic.BaseModel, extra="forbid", frozen=True):
    pass


class Maker(_Strict):
    """A reproduction, and perhaps one of its cases."""

    name: str
    case: str | None = None

    @property
    def command(self) -> str:
        return f"filigree reproduce {self.name}" + ("" if self.case is None else f" --case {self.case}")


def _maker(given: Any) -> Any:
    return {"name": given} if isinstance(given, str) else given


class Entry(_Strict):
    """A table, a figure or a claim.

    Attributes:
        where: its place. about: what it shows or claims, with the printed figures. by: what makes it again.
        state: full (at the document's setting), scaled (smaller), needs data (of the user's own), not made.
        reason: why it is not made, or in part. slip: the document's own slip about it.
    """

    where: str
    about: str
    by: tuple[Annotated[Maker, pydantic.BeforeValidator(_maker)], ...] = ()
    state: State
    reason: str = ""
    slip: str = ""

    @pydantic.model_validator(mode="after")
    def _is_made_or_says_why(self) -> Entry:
        if (self.state == "not made") == bool(self.by):
            raise ValueError(f"{self.where}: expected `by` where it is made, and there only. Got {self.state}.")
        if self.state == "not made" and not self.reason:
            raise ValueError(f"{self.where}: a `reason` is missing.")
        return self


class Document(_Strict):
    id: str
    title: str
    entries: tuple[Entry, ...]

    def key(self, entry: Entry) -> str:
        """As findings name it."""
        return f"{self.id}, {entry.where}"


class _File(_Strict):
    expect: dict[str, float]
    documents: tuple[Document, ...]


@functools.cache
def _file() -> _File:
    text = (resources.files(__package__) / "documents.yaml").read_text(encoding="utf-8")
    return _File.model_validate(yaml.safe_load(text))


def all_documents() -> list[Document]:
    """All five, from the package's own file."""
    return list(_file().documents)


def expected() -> dict[str, float]:
    """Minutes of a reproduction that has no record with times, estimated."""
    return _file().expect


@functools.cache
def scaled() -> frozenset[str]:
    """The keys of the entries that are made smaller than their document's."""
    return frozenset(d.key(entry) for d in _file().documents for entry in d.entries if entry.state == "scaled")
