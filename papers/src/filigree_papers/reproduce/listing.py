"""The listing of `filigree reproduce`: each entry of the documents with the verdict and state of its newest records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from filigree.recipes import RecipeError
from filigree_papers.reproduce import provenance
from filigree_papers.reproduce.documents import Document, Entry, expected
from filigree_papers.reproduce.experiment import Asked, Experiment
from filigree_papers.reproduce.findings import together
from filigree_papers.reproduce.summary import FILE, Summary

FOLDERS = (Path("runs"), Path("papers/results"), Path("results"))
COLOURS = {"reproduced": "green", "partly": "yellow", "not": "red", "open": "dim"}


@dataclass(frozen=True)
class Kept:
    """The newest record of an experiment.

    Attributes:
        state: none, current, config changed, or code changed (its commit). done, asked: runs. expect: the minutes that
            all of them take, estimated without a record. long: it takes days.
    """

    state: str
    summary: Summary | None = None
    path: Path | None = None
    done: int = 0
    asked: int = 0
    expect: float | None = None
    long: bool = False

    @property
    def measured(self) -> bool:
        """Whether the record says what all runs take."""
        return self.done == self.asked and self._seconds is not None and not (self.summary and self.summary.estimated)

    @property
    def _seconds(self) -> float | None:
        return self.summary.seconds if self.summary is not None and self.done else None

    @property
    def minutes(self) -> float | None:
        """Of all runs, by those that are done; None: not known."""
        return self.expect if self._seconds is None else self._seconds / 60 * self.asked / self.done

    @property
    def current(self) -> bool:
        return self.state == "current" and self.done >= self.asked


@dataclass
class Listed:
    """An entry of a document, and what the records say of it.

    Attributes:
        minutes: of all runs of what makes it; what takes days counts only where all does. None: not known.
        estimated: they were not measured, or not of all runs.
    """

    document: Document
    entry: Entry
    kept: dict[str, Kept]
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return together(its["verdict"] for its in self.findings) if self.findings else ""

    @property
    def minutes(self) -> float | None:
        known = [its.minutes for its in self._counted if its.minutes is not None]
        return sum(known) if known else None

    @property
    def estimated(self) -> bool:
        return not all(its.measured for its in self._counted)

    @property
    def _counted(self) -> list[Kept]:
        return [its for its in self.kept.values() if not its.long] or list(self.kept.values())


def newest(made: Experiment, folders: Iterable[Path], quick: bool = False) -> tuple[Kept, list[str]]:
    """The newest record in `FOLDER/NAME/summary.json` or `FOLDER/NAME.json`, and a line on each that cannot be read.

    `quick` looks for records of quick runs, `FOLDER/NAME-quick/summary.json`; these never stand for the full ones.
    """
    name = f"{made.name}-quick" if quick else made.name
    found: list[tuple[str, Summary, Path]] = []
    lines = []
    for folder in folders:
        for path in (folder / name / FILE, folder / f"{name}.json"):
            if not path.is_file():
                continue
            try:
                summary = Summary.load(path)
            except ValueError as error:
                lines.append(f"{error} `filigree reproduce {made.name}` writes it anew.")
                continue
            if summary.name == made.name and summary.quick == quick:
                found.append((summary.finished or "", summary, path))
    expect = None if quick else expected().get(made.name)
    if not found:
        return Kept("none", expect=expect, long=made.long), lines
    _, summary, path = max(found, key=lambda its: its[0])  # of equal ones the first
    pairs = made.pairs(Asked(quick=quick))
    done = sum(seed in summary.complete.get(case, []) for case, seed in pairs)
    return Kept(_state(made, summary, quick), summary, path, done, len(pairs), expect, made.long), lines


def _state(made: Experiment, summary: Summary, quick: bool) -> str:
    if summary.config is not None and summary.config != made.config(Asked(quick=quick)):
        return "config changed"
    if summary.code != provenance.code():
        return f"code changed ({(summary.commit or 'unknown')[:7]})"
    return "current"


def list_entries(
    documents: Sequence[Document], made: Mapping[str, Experiment], folders: Sequence[Path], only: str | None = None
) -> tuple[list[Listed], list[str]]:
    """All entries, or those of the document `only`; and a line on each record that cannot be read."""
    if only is not None and only not in (ids := [document.id for document in documents]):
        raise RecipeError(f"--document {only}: the documents are {', '.join(ids)}.")
    kept: dict[str, Kept] = {}
    entries, lines = [], []
    for document in documents:
        if only not in (None, document.id):
            continue
        for entry in document.entries:
            for maker in entry.by:
                if maker.name not in kept:
                    kept[maker.name], more = newest(made[maker.name], folders)
                    lines += more
            mine = {maker.name: kept[maker.name] for maker in entry.by}
            key = document.key(entry)
            findings = [
                {"by": name, **finding}
                for name, its in mine.items()
                if its.summary is not None
                for finding in its.summary.findings
                if finding["where"] == key
            ]
            entries.append(Listed(document, entry, mine, findings))
    return entries, lines


def tables(entries: Sequence[Listed]) -> list[Table]:
    """A table a document, readable at 100 columns."""
    made: dict[str, Table] = {}
    for its in entries:
        document, entry = its.document, its.entry
        if document.id not in made:
            table = Table(title=f"{document.id}: {document.title}", title_justify="left", box=box.SIMPLE_HEAD)
            table.add_column("what", ratio=1)
            for heading, width in (("state", 10), ("verdict", 10), ("record", 14), ("min", 5)):
                table.add_column(heading, width=width, justify="right" if heading == "min" else "left")
            made[document.id] = table
        lines = [f"[bold]{escape(entry.where)}[/bold]  {escape(entry.about)}"]
        lines += [f"[yellow]{escape(entry.reason)}[/yellow]"] if entry.reason else []
        lines += [f"[cyan]{escape(maker.command)}[/cyan]" for maker in entry.by]
        verdict = f"[{COLOURS[its.verdict]}]{its.verdict}[/]" if its.verdict else "-"
        made[document.id].add_row("\n".join(lines), entry.state, verdict, _record(its), _minutes(its), end_section=True)
    return list(made.values())


def _record(its: Listed) -> str:
    if not its.kept:
        return "-"
    texts = []
    for kept in its.kept.values():
        part = f", {kept.done} of {kept.asked} runs" if kept.summary is not None and kept.done < kept.asked else ""
        texts.append(kept.state + part)
    if len(texts) == 1:
        return texts[0]
    return "\n".join(f"{texts.count(text)} {text}" for text in dict.fromkeys(texts))


def _minutes(its: Listed) -> str:
    if its.minutes is None:
        return "-"
    text = f"{its.minutes:.{1 if its.minutes < 10 else 0}f}" if its.minutes < 10_000 else f"{its.minutes / 1440:.0f} d"
    return f"{'~' if its.estimated else ''}{text}"


def totals(entries: Sequence[Listed]) -> str:
    """How many entries have which state and which verdict."""
    states = Counter(its.entry.state for its in entries)
    verdicts = Counter(its.verdict or "without a record" for its in entries if its.entry.by)
    return f"{len(entries)} entries: {_counts(states)}. Of those that are made: {_counts(verdicts)}."


def _counts(counter: Counter[Any]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counter.most_common())


def plain(entries: Sequence[Listed]) -> list[dict[str, Any]]:
    """The listing as plain data, for a report."""
    return [
        {
            "document": its.document.id, "title": its.document.title, "where": its.entry.where,
            "about": its.entry.about, "state": its.entry.state, "reason": its.entry.reason, "slip": its.entry.slip,
            "verdict": its.verdict or None, "findings": its.findings, "minutes": its.minutes,
            "estimated": its.estimated,
            "by": [
                {"command": maker.command, "name": maker.name, "case": maker.case, **_provenance(its.kept[maker.name])}
                for maker in its.entry.by
            ],
        }
        for its in entries
    ]  # fmt: skip


def _provenance(kept: Kept) -> dict[str, Any]:
    keys = ("commit", "dirty", "code", "config", "finished", "machine", "versions", "complete", "seconds", "estimated")
    summary = kept.summary.model_dump() if kept.summary is not None else {}
    path = None if kept.path is None else kept.path.as_posix()
    record = {key: summary.get(key) for key in keys}
    return {"record": kept.state, "path": path, "done": kept.done, "asked": kept.asked, **record}
