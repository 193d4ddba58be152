"""What is printed in a document, run again: runs by case and seed, each kept with where it comes from."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from rich.table import Table

from filigree.recipes import RecipeError
from filigree_papers.reproduce import documents
from filigree_papers.reproduce.bars import Bars
from filigree_papers.reproduce.findings import Finding
from filigree_papers.reproduce.provenance import Ledger, RunProvenance, digest
from filigree_papers.reproduce.run_summary import FILE, MIXED, RunSummary, common

Rows = list[dict[str, Any]]
CaseSeed = tuple[str, int]
Checked = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Request:
    """Which part of an experiment to run: by default all of it.

    Attributes:
        renew: run again what another code or configuration made; otherwise that is kept, and named.
        timed: False leaves the times of recipes out, for a machine that does other work meanwhile.
    """

    cases: Sequence[str] = ()
    seeds: Sequence[int] | None = None
    settings: Sequence[str] = ()
    quick: bool = False
    renew: bool = False
    timed: bool = True

    def choose(self, experiment: Experiment) -> list[str]:
        if unknown := set(self.cases) - set(experiment.cases):
            raise RecipeError(
                f"--case {min(unknown)}: the cases of {experiment.name} are {', '.join(experiment.cases)}."
            )
        return list(self.cases or experiment.cases)


class Experiment(ABC):
    """Runs by case and seed. Each is kept on its own, and a stopped experiment goes on with the next one.

    `read` gives the results of the runs that are done; `findings`, `rows`, `table` and `write_page` take them.

    Attributes:
        name, about: what `filigree list` shows.
        cases: their names.
        notes: what a reader should know.
        long: it takes days, so that `filigree reproduce all` leaves it out; where an entry is scaled, only such an
            experiment is of the document's size.
        resumes: an interrupted run goes on where it stopped, in place of beginning anew.
    """

    name: str
    about: str
    cases: Iterable[str]
    notes: Sequence[str]
    long: bool
    resumes: ClassVar[bool]

    @abstractmethod
    def seeds_of(self, case: str, request: Request) -> Sequence[int]: ...
    @abstractmethod
    def config_of(self, case: str, seed: int, request: Request) -> str:
        """A hash of everything that defines this run."""

    @abstractmethod
    def needs(self, quick: bool) -> list[str]:
        """The names of the data."""

    @abstractmethod
    def is_there(self, out: Path, case: str, seed: int, request: Request) -> bool: ...
    @abstractmethod
    def perform(self, out: Path, case: str, seed: int, request: Request, bars: Bars) -> None:
        """Run it, or go on where it stopped."""

    @abstractmethod
    def discard(self, out: Path, case: str, seed: int, request: Request) -> None: ...
    @abstractmethod
    def read(self, out: Path, pairs: Sequence[CaseSeed], request: Request) -> Any: ...
    @abstractmethod
    def findings(self, results: Any) -> list[Finding]: ...
    @abstractmethod
    def rows(self, results: Any) -> Rows: ...
    @abstractmethod
    def table(self, results: Any) -> Table: ...
    @abstractmethod
    def checked(self, rows: Rows) -> tuple[Checked, str]:
        """What a check compares of a summary's rows, times left out: name -> mean and deviation; and what part of a
        run that is."""

    @abstractmethod
    def make_again(
        self, out: Path, case: str, seed: int, request: Request, part: str, bars: Bars, recorded: Rows
    ) -> Rows:
        """The rows of a run, as in a summary, made again in an empty folder: at least those of that part.

        Args:
            recorded: the rows of the record, with what a search has chosen.
        """

    @abstractmethod
    def write_page(self, out: Path, results: Any, lines: Sequence[str]) -> None: ...

    def pairs(self, request: Request) -> list[CaseSeed]:
        return [(case, seed) for case in request.choose(self) for seed in self.seeds_of(case, request)]

    def config(self, request: Request) -> str:
        """A hash of all cases and seeds, for `RunSummary.config`."""
        whole = Request(settings=request.settings, quick=request.quick)
        return digest([(*pair, self.config_of(*pair, whole)) for pair in self.pairs(whole)])

    def again(self, out: Path, request: Request, bars: Bars) -> tuple[Table, list[Finding]]:
        """Run what is missing in `out`; returns the table, and findings on all that is done there."""
        pairs = self.pairs(request)
        out.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(out)
        task = bars.count(self.name, len(pairs))
        for case, seed in pairs:
            if not self._is_done(out, case, seed, request, ledger):
                self._run(out, case, seed, request, ledger, bars)
                self._summarise(out, request, ledger)
            bars.advance(task)
        bars.update(task, description=f"{self.name}: report", total=None)  # a bar that is full would say it is done
        results, findings = self._summarise(out, request, ledger)
        self._name_kept(out, request, ledger, bars)
        lines = [f"{finding.verdict}: {finding.text}" for finding in findings]
        self.write_page(out, results, [*lines, *self.notes])
        bars.remove_task(task)
        return self.table(results), findings

    def _is_done(self, out: Path, case: str, seed: int, request: Request, ledger: Ledger) -> bool:
        run = ledger.runs.get((case, seed))
        if request.renew and (run is None or not run.is_of(self.config_of(case, seed, request))):
            return False
        return (run is None or run.finished is not None) and self.is_there(out, case, seed, request)

    def _run(self, out: Path, case: str, seed: int, request: Request, ledger: Ledger, bars: Bars) -> None:
        config, before = self.config_of(case, seed, request), ledger.runs.get((case, seed))
        if request.renew and (before is None or not before.is_of(config)):
            self.discard(out, case, seed, request)
            before = None
        run = RunProvenance.begin(config)
        taken: float | None = 0.0
        lacks_times = self.is_there(out, case, seed, replace(request, timed=False))
        if before is None and self.resumes and lacks_times:  # of before provenance was kept
            before = RunProvenance()
        if before is not None and self.resumes and (before.finished is None or lacks_times):
            taken, run.estimated = before.seconds, before.estimated  # None: nobody knows
            if not before.is_of(config):  # begun by another code
                run.config = run.code = None
        ledger.runs[case, seed] = run
        ledger.save((case, seed))
        started = time.perf_counter()
        try:
            self.perform(out, case, seed, request, bars)
            run.end()
        finally:
            run.seconds = None if taken is None else taken + time.perf_counter() - started
            ledger.save((case, seed))
            bars.drop_fits()

    def _summarise(self, out: Path, request: Request, ledger: Ledger) -> tuple[Any, list[Finding]]:
        whole = Request(settings=request.settings, quick=request.quick, timed=False)
        pairs = list(dict.fromkeys([*self.pairs(whole), *self.pairs(request)]))
        done = [pair for pair in pairs if self._is_done(out, *pair, whole, ledger)]
        results = self.read(out, done, request)
        findings = self._at_our_size(self.findings(results))
        runs = [ledger.runs.get(pair, RunProvenance()) for pair in done]
        newest = max(runs, key=lambda run: run.finished or "", default=RunProvenance())
        same_config = all(run.config == self.config_of(*pair, request) for run, pair in zip(runs, done, strict=True))
        complete: dict[str, list[int]] = {}
        for case, seed in done:
            complete.setdefault(case, []).append(seed)
        seconds = [run.seconds for run in runs if run.seconds is not None]
        RunSummary(
            name=self.name, quick=request.quick, settings=list(request.settings), complete=complete,
            commit=newest.commit, dirty=newest.dirty, machine=newest.machine, versions=newest.versions,
            code=common([run.code for run in runs]),
            config=self.config(request) if same_config else common([run.config and MIXED for run in runs]),
            finished=newest.finished, seconds=sum(seconds) if len(seconds) == len(runs) else None,
            estimated=any(run.estimated for run in runs), findings=[asdict(finding) for finding in findings],
            notes=list(self.notes), rows=self.rows(results),
        ).save_over(out / FILE)  # fmt: skip
        return results, findings

    def _at_our_size(self, findings: Sequence[Finding]) -> list[Finding]:
        """Figures of an entry that is made smaller than the document's stay open."""
        return [
            finding.scaled() if finding.where in documents.scaled() and not self.long else finding
            for finding in findings
        ]

    def _name_kept(self, out: Path, request: Request, ledger: Ledger, bars: Bars) -> None:
        pairs = self.pairs(request)
        others = [
            pair for pair in pairs
            if (run := ledger.runs.get(pair)) is None or not run.is_of(self.config_of(*pair, request))
        ]  # fmt: skip
        if others:
            bars.console.print(
                f"{self.name}: {len(others)} of {len(pairs)} runs are kept that another code or "
                f"configuration made; delete {out} to run them again.", highlight=False,
            )  # fmt: skip
