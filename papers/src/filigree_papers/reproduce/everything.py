"""`filigree reproduce all`: one experiment after another; what has a current record is left alone."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pooch
from rich import box
from rich.markup import escape
from rich.table import Table

from filigree.data.files import is_present
from filigree_papers.reproduce.bars import Bars
from filigree_papers.reproduce.experiment import Experiment, Request
from filigree_papers.reproduce.findings import Verdict, together
from filigree_papers.reproduce.listing import COLOURS, FOLDERS, NewestRecord, newest_record

FAILED, NEEDS_DATA = 1, 3  # exit codes
OWN = ("europarl", "flickr8k")  # folders that the user has to bring


@dataclass
class Outcome:
    """What became of the experiments, by name.

    Attributes:
        seconds: how long those that ran took. current: they have a current record, and were left alone.
        failed: the error of each. missing: the data sets that each lacks.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    current: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return FAILED if self.failed else NEEDS_DATA if self.missing else 0


def absent(names: Sequence[str]) -> list[str]:
    """Those of the data sets that are not at hand."""
    root = Path(os.environ.get("FILIGREE_DATA") or pooch.os_cache("filigree"))
    return [name for name in names if not ((root / name).is_dir() if name in OWN else is_present(name))]


def chosen(experiments: Mapping[str, Experiment], quick: bool) -> list[Experiment]:
    """All that do not take days; of a quick run also those that do, unless there is a smaller version of them."""
    return [
        experiment
        for name, experiment in experiments.items()
        if not experiment.long or (quick and not _has_smaller(name, experiments))
    ]


def _has_smaller(name: str, experiments: Mapping[str, Experiment]) -> bool:
    """Whether there is a smaller version of the experiment: NAME-short, or of NAME-full NAME."""
    return f"{name}-short" in experiments or (name.endswith("-full") and name.removesuffix("-full") in experiments)


def estimate(experiments: Sequence[Experiment], out: Path, folders: Sequence[Path], quick: bool) -> str:
    """How long they will take, by the newest records; what is current in any of the folders is not run."""
    known, unknown = 0.0, 0
    for experiment in experiments:
        record = newest_record(experiment, [out, *folders], quick)[0]
        if record.current or absent(experiment.needs(quick)):
            continue
        done = 0.0  # quick ones are made again
        if not quick:
            here = newest_record(experiment, [out])[0]
            done = here.done / max(here.total, 1)
        if record.minutes is None:
            unknown += 1
        else:
            known += 60 * record.minutes * (1 - done)
    times = f"about {known / 3600:.1f} hours" if known > 5400 else f"about {known / 60:.0f} minutes"
    return f"{times if known else 'a time not known'}{f' without {unknown} that were never timed' if unknown else ''}"


def run_all(
    every: Mapping[str, Experiment], out: Path, quick: bool, bars: Bars, folders: Sequence[Path] = FOLDERS
) -> Outcome:
    """Run each in `out/NAME`, or `out/NAME-quick`. One that fails does not end the others.

    What has a current record in `out` or in one of the folders is left alone.
    Quick runs of another code or configuration are made again; full ones are kept and named, since they take hours.
    """
    experiments = chosen(every, quick)
    outcome = Outcome()
    task = bars.count("all", len(experiments))
    for experiment in experiments:
        name = experiment.name
        bars.update(task, description=f"all: {name}")
        started = time.perf_counter()
        if lacking := absent(experiment.needs(quick)):
            outcome.missing[name] = lacking
            bars.console.print(f"{name}: needs data: {', '.join(lacking)} (FILIGREE_DATA); skipped")
        elif newest_record(experiment, [out, *folders], quick)[0].current:
            outcome.current.append(name)
        else:
            try:
                folder = out / (f"{name}-quick" if quick else name)
                experiment.again(folder, Request(quick=quick, renew=quick), bars)
                outcome.seconds[name] = time.perf_counter() - started
                bars.console.print(f"{name}: {outcome.seconds[name] / 60:.1f} min", highlight=False)
            except Exception as error:
                outcome.failed[name] = " ".join(f"{type(error).__name__}: {error}".split())
                bars.console.print(f"[red]{name} failed:[/red] {escape(outcome.failed[name])}")
        bars.advance(task)
    bars.remove_task(task)
    return outcome


def verdicts(
    every: Mapping[str, Experiment], out: Path, quick: bool, outcome: Outcome, folders: Sequence[Path] = FOLDERS
) -> Table:
    """A line for each experiment: its minutes, and the verdict on each place in its document."""
    title = "Verdicts of quick runs, which say only that all works" if quick else "Verdicts"
    table = Table("reproduction", "min", "findings", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for experiment in chosen(every, quick):
        name = experiment.name
        if name in outcome.failed:
            table.add_row(name, "", f"[red]failed:[/red] {escape(outcome.failed[name])}")
        elif name in outcome.missing:
            table.add_row(name, "", f"needs data: {', '.join(outcome.missing[name])}")
        else:
            record = newest_record(experiment, [out, *folders] if name in outcome.current else [out], quick)[0]
            seconds = outcome.seconds.get(name)
            table.add_row(name, "kept" if seconds is None else f"{seconds / 60:.1f}", _verdicts_of(record))
    return table


def _verdicts_of(record: NewestRecord) -> str:
    by_place: dict[str, list[Verdict]] = defaultdict(list)
    for finding in record.summary.findings if record.summary is not None else []:
        by_place[finding["where"]].append(finding["verdict"])
    lines = []
    for where, each in by_place.items():
        verdict = together(each)
        lines.append(f"{escape(where)}: [{COLOURS[verdict]}]{verdict}[/]")
    return "\n".join(lines) or "-"
