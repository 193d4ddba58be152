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
from filigree_papers.reproduce.experiment import Asked, Experiment
from filigree_papers.reproduce.findings import Verdict, together
from filigree_papers.reproduce.listing import COLOURS, FOLDERS, Kept, newest

FAILED, NEEDS_DATA = 1, 3  # exit codes
OWN = ("europarl", "flickr8k")  # folders of the user's own


@dataclass
class Outcome:
    """What became of the experiments, by name. seconds: of those that ran."""

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


def chosen(made: Mapping[str, Experiment], quick: bool) -> list[Experiment]:
    """What takes days is run by its name only; quick runs are of all but those that have a smaller twin."""
    return [its for its in made.values() if not its.long or (quick and not _has_twin(its.name, made))]


def _has_twin(name: str, made: Mapping[str, Experiment]) -> bool:
    """Whether there is NAME-short, or NAME is itself a twin's name with -full."""
    return f"{name}-short" in made or (name.endswith("-full") and name.removesuffix("-full") in made)


def estimate(experiments: Sequence[Experiment], out: Path, folders: Sequence[Path], quick: bool) -> str:
    """How long it will take, by the newest records; what is current in any of the folders is not run."""
    known, unknown = 0.0, 0
    for its in experiments:
        kept = newest(its, [out, *folders], quick)[0]
        if kept.current or absent(its.needs(quick)):
            continue
        here = Kept("none") if quick else newest(its, [out])[0]  # quick ones are made again
        if kept.minutes is None:
            unknown += 1
        else:
            known += 60 * kept.minutes * (1 - here.done / max(here.asked, 1))
    times = f"about {known / 3600:.1f} hours" if known > 5400 else f"about {known / 60:.0f} minutes"
    return f"{times if known else 'a time not known'}{f' without {unknown} that were never timed' if unknown else ''}"


def run_all(
    made: Mapping[str, Experiment], out: Path, quick: bool, bars: Bars, folders: Sequence[Path] = FOLDERS
) -> Outcome:
    """Run each in `out/NAME`, or `out/NAME-quick`. One that fails does not end the others.

    What has a current record in `out` or in one of the folders is left alone.
    Quick runs of another code or configuration are made again; full ones are kept and named, since they take hours.
    """
    experiments = chosen(made, quick)
    outcome = Outcome()
    task = bars.count("all", len(experiments))
    for its in experiments:
        name = f"{its.name}-quick" if quick else its.name
        bars.update(task, description=f"all: {its.name}")
        started = time.perf_counter()
        if lacking := absent(its.needs(quick)):
            outcome.missing[its.name] = lacking
            bars.console.print(f"{its.name}: needs data: {', '.join(lacking)} (FILIGREE_DATA); skipped")
        elif newest(its, [out, *folders], quick)[0].current:
            outcome.current.append(its.name)
        else:
            try:
                its.again(out / name, Asked(quick=quick, renew=quick), bars)
                outcome.seconds[its.name] = time.perf_counter() - started
                bars.console.print(f"{its.name}: {outcome.seconds[its.name] / 60:.1f} min", highlight=False)
            except Exception as error:
                outcome.failed[its.name] = " ".join(f"{type(error).__name__}: {error}".split())
                bars.console.print(f"[red]{its.name} failed:[/red] {escape(outcome.failed[its.name])}")
        bars.advance(task)
    bars.remove_task(task)
    return outcome


def verdicts(
    made: Mapping[str, Experiment], out: Path, quick: bool, outcome: Outcome, folders: Sequence[Path] = FOLDERS
) -> Table:
    """A line an experiment: its minutes and the verdict on each place of its document."""
    title = "Verdicts of quick runs, which say only that all works" if quick else "Verdicts"
    table = Table("reproduction", "min", "findings", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for its in chosen(made, quick):
        if its.name in outcome.failed:
            table.add_row(its.name, "", f"[red]failed:[/red] {escape(outcome.failed[its.name])}")
        elif its.name in outcome.missing:
            table.add_row(its.name, "", f"needs data: {', '.join(outcome.missing[its.name])}")
        else:
            kept = newest(its, [out, *folders] if its.name in outcome.current else [out], quick)[0]
            seconds = outcome.seconds.get(its.name)
            table.add_row(its.name, "kept" if seconds is None else f"{seconds / 60:.1f}", _places(kept))
    return table


def _places(kept: Kept) -> str:
    found: dict[str, list[Verdict]] = defaultdict(list)
    for finding in kept.summary.findings if kept.summary is not None else []:
        found[finding["where"]].append(finding["verdict"])
    lines = []
    for where, its in found.items():
        verdict = together(its)
        lines.append(f"{escape(where)}: [{COLOURS[verdict]}]{verdict}[/]")
    return "\n".join(lines) or "-"
