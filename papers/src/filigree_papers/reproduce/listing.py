"""The listing of `filigree reproduce`: each entry of the documents with the verdict and state of its newest records."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from filigree.recipes import RecipeError
from filigree_papers.reproduce import provenance
from filigree_papers.reproduce.check import code_of
from filigree_papers.reproduce.documents import Document, Entry, expected, stands
from filigree_papers.reproduce.experiment import Experiment, Request
from filigree_papers.reproduce.findings import together
from filigree_papers.reproduce.run_summary import FILE, RunSummary

FOLDERS = (Path("runs"), Path("papers/results"), Path("results"))
COLOURS = {"reproduced": "green", "partly": "yellow", "not": "red", "open": "dim"}


@dataclass(frozen=True)
class NewestRecord:
    """The newest record of an experiment.

    Attributes:
        state: none; current; checked (with the commit of the check); config changed or code changed (with its commit),
            which say so where a check differs, or where the code it ran has changed since.
        done, total: how many runs are done, and how many there are.
        expect: the estimated minutes that all runs take, known without a record.
        long: the experiment takes days.
    """

    state: str
    summary: RunSummary | None = None
    path: Path | None = None
    done: int = 0
    total: int = 0
    expect: float | None = None
    long: bool = False

    @property
    def measured(self) -> bool:
        """Whether the record says what all runs take."""
        return self.done == self.total and self._seconds is not None and not (self.summary and self.summary.estimated)

    @property
    def _seconds(self) -> float | None:
        return self.summary.seconds if self.summary is not None and self.done else None

    @property
    def minutes(self) -> float | None:
        """The minutes of all runs, estimated from those that are done; None: not known."""
        return self.expect if self._seconds is None else self._seconds / 60 * self.total / self.done

    @property
    def current(self) -> bool:
        return self.state.startswith(("current", "checked")) and self.done >= self.total

    @property
    def word(self) -> str:
        """The state in a word, or how many runs are done."""
        if self.summary is not None and self.done < self.total:
            return f"{self.done} of {self.total}"
        first = self.state.split()[0]
        return "older" if first in ("config", "code") else first


@dataclass
class ListedEntry:
    """An entry of a document, with the newest record of each experiment that makes it again.

    Attributes:
        minutes: the time of all its experiments; one that takes days counts only where all of them do. None: not known.
        estimated: the minutes were not measured, or not for all runs.
    """

    document: Document
    entry: Entry
    records: dict[str, NewestRecord]
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return together(finding["verdict"] for finding in self.findings) if self.findings else ""

    @property
    def minutes(self) -> float | None:
        known = [record.minutes for record in self.counted if record.minutes is not None]
        return sum(known) if known else None

    @property
    def estimated(self) -> bool:
        return not all(record.measured for record in self.counted)

    @property
    def counted(self) -> list[NewestRecord]:
        """The records that its time is counted by: those that take days only where all do."""
        return [record for record in self.records.values() if not record.long] or list(self.records.values())


def newest_record(
    experiment: Experiment, folders: Iterable[Path], quick: bool = False
) -> tuple[NewestRecord, list[str]]:
    """The newest record in `FOLDER/NAME/summary.json` or `FOLDER/NAME.json`, and a line on each that cannot be read.

    `quick` looks for records of quick runs, `FOLDER/NAME-quick/summary.json`; these never stand for the full ones.
    """
    name = f"{experiment.name}-quick" if quick else experiment.name
    candidates: list[tuple[RunSummary, Path]] = []
    lines = []
    for folder in folders:
        for path in (folder / name / FILE, folder / f"{name}.json"):
            if not path.is_file():
                continue
            try:
                summary = RunSummary.load(path)
            except ValueError as error:
                lines.append(f"{error} `filigree reproduce {experiment.name}` writes it anew.")
                continue
            if summary.name == experiment.name and summary.quick == quick:
                candidates.append((summary, path))
    expect = None if quick else expected().get(experiment.name)
    if not candidates:
        return NewestRecord("none", expect=expect, long=experiment.long), lines
    summary, path = max(candidates, key=lambda candidate: candidate[0].finished or "")  # of equal ones the first
    pairs = experiment.pairs(Request(quick=quick))
    done = sum(seed in summary.complete.get(case, []) for case, seed in pairs)
    return NewestRecord(
        _state(experiment, summary, quick), summary, path, done, len(pairs), expect, experiment.long
    ), lines


def _state(experiment: Experiment, summary: RunSummary, quick: bool) -> str:
    config, check = experiment.config(Request(quick=quick)), summary.check
    changed = "config changed" if summary.config not in (None, config) else ""
    if summary.code != provenance.code():
        changed = changed or f"code changed ({(summary.commit or 'unknown')[:7]})"
    if not changed or check is None:
        return changed or "current"
    if (check.code, check.config) != (code_of(check.files), config):
        return f"{changed}, and since its check ({(check.commit or 'unknown')[:7]})"
    if not check.agrees:
        return f"{changed}: {check.part} differs"
    return f"checked ({(check.commit or 'unknown')[:7]}, {check.finished[:10]})"


def list_entries(
    documents: Sequence[Document],
    experiments: Mapping[str, Experiment],
    folders: Sequence[Path],
    only: str | None = None,
) -> tuple[list[ListedEntry], list[str]]:
    """All entries, or those of the document of the author `only`; and a line on each record that cannot be read."""
    if only is not None and only.lower() not in (authors := [document.author for document in documents]):
        raise RecipeError(f"--document {only}: expected an author's name, one of {', '.join(authors)}.")
    records: dict[str, NewestRecord] = {}
    entries, lines = [], []
    for document in documents:
        if only is not None and only.lower() != document.author:
            continue
        for entry in document.entries:
            for rerun in entry.by:
                if rerun.name not in records:
                    records[rerun.name], more = newest_record(experiments[rerun.name], folders)
                    lines += more
            own = {rerun.name: records[rerun.name] for rerun in entry.by}
            key = document.key(entry)
            findings = [
                {"by": name, **finding}
                for name, record in own.items()
                if record.summary is not None
                for finding in record.summary.findings
                if finding["where"] == key
            ]
            entries.append(ListedEntry(document, entry, own, findings))
    return entries, lines


def tables(entries: Sequence[ListedEntry], width: int = 100) -> list[Table]:
    """One table for each document, at most two lines an entry, as wide as the terminal."""
    by_document: dict[str, Table] = {}
    room = max(
        width - sum(COLUMNS.values()) - 3 * len(COLUMNS), 20
    )  # each column has a space to each side, and a divider
    for listed in entries:
        document, entry = listed.document, listed.entry
        if document.cite not in by_document:
            title = f"{document.cite}: {document.title}"
            table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
            table.add_column("what", width=room, no_wrap=True)
            for heading, wide in COLUMNS.items():
                table.add_column(heading, width=wide, justify="right" if heading == "min" else "left")
            by_document[document.cite] = table
        about = entry.reason if entry.state == "not made" else entry.about
        lines = textwrap.wrap(f"{entry.where} {about}", room, max_lines=2, placeholder="...")
        what = Text("\n".join(lines))
        what.stylize("bold", 0, len(entry.where))
        words = list(dict.fromkeys(record.word for record in listed.counted))
        cells = (what, entry.state, _verdict(listed), " ".join(words) or "-", _minutes(listed))
        by_document[document.cite].add_row(*cells)
    return list(by_document.values())


COLUMNS = {"state": 10, "verdict": 10, "record": 8, "min": 6}


def details(entries: Sequence[ListedEntry]) -> Iterator[str]:
    """All that is known of each entry, as lines of rich's markup."""
    for listed in entries:
        entry = listed.entry
        head = f"[bold]{escape(listed.document.key(entry))}[/bold]  {entry.state}, {_minutes(listed)} min"
        yield f"{head}  {_verdict(listed)}\n{escape(entry.about)}"
        for name, text in (
            ("Why not made, or in part", entry.reason), ("Why not reproduced", entry.assessment),
            ("The document's slip", entry.slip),
        ):  # fmt: skip
            if text:
                yield f"  [yellow]{name}:[/yellow] {escape(text)}"
        for finding in listed.findings:
            yield f"  [{COLOURS[finding['verdict']]}]{finding['verdict']}[/]  {escape(finding['text'])}"
        for rerun in entry.by:
            record = listed.records[rerun.name]
            part = f", {record.done} of {record.total} runs" if record.summary and record.done < record.total else ""
            why = f". {stands()[rerun.name]}" if record.word == "older" and rerun.name in stands() else ""
            yield f"  [cyan]{escape(rerun.command)}[/cyan]  {escape(record.state + part + why)}"
        yield ""


def _verdict(listed: ListedEntry) -> str:
    return f"[{COLOURS[listed.verdict]}]{listed.verdict}[/]" if listed.verdict else "-"


def _minutes(listed: ListedEntry) -> str:
    if (minutes := listed.minutes) is None:
        return "-"
    text = f"{minutes:.{1 if minutes < 10 else 0}f}" if minutes < 10_000 else f"{minutes / 1440:.0f} d"
    return f"{'~' if listed.estimated else ''}{text}"


def totals(entries: Sequence[ListedEntry]) -> str:
    """How many entries have each state and each verdict."""
    states = Counter(listed.entry.state for listed in entries)
    verdicts = Counter(listed.verdict or "without a record" for listed in entries if listed.entry.by)
    return f"{len(entries)} entries: {_counts(states)}. Of those that are made: {_counts(verdicts)}."


def _counts(counter: Counter[Any]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counter.most_common())


def plain(entries: Sequence[ListedEntry]) -> list[dict[str, Any]]:
    """The listing as plain data, for a report."""
    return [
        {
            "document": listed.document.cite, "title": listed.document.title,
            **listed.entry.model_dump(exclude={"by"}), "verdict": listed.verdict or None,
            "findings": listed.findings, "minutes": listed.minutes, "estimated": listed.estimated,
            "by": [
                {"command": rerun.command, **rerun.model_dump(), **_provenance(listed.records[rerun.name]),
                 "stands": stands().get(rerun.name, "") if listed.records[rerun.name].word == "older" else ""}
                for rerun in listed.entry.by
            ],
        }
        for listed in entries
    ]  # fmt: skip


def _provenance(record: NewestRecord) -> dict[str, Any]:
    keys = ("commit", "dirty", "code", "config", "finished", "machine", "versions", "complete", "seconds", "estimated")
    summary = record.summary.model_dump() if record.summary is not None else {}
    path = None if record.path is None else record.path.as_posix()
    plain_record = {"record": record.state, "path": path, "done": record.done, "asked": record.total}
    return plain_record | {key: summary.get(key) for key in keys}
