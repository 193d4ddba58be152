"""What is printed in a document, run again: runs by case and seed, each kept with where it comes from."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.table import Table

from filigree.recipes import RecipeError
from filigree_papers.reproduce import documents
from filigree_papers.reproduce.bars import Bars
from filigree_papers.reproduce.findings import Finding
from filigree_papers.reproduce.provenance import Ledger, Run, digest
from filigree_papers.reproduce.summary import FILE, MIXED, Summary, common

Rows = list[dict[str, Any]]
Pair = tuple[str, int]  # case and seed


@dataclass(frozen=True)
class Asked:
    """What of a reproduction is asked for: by default all of it.

    `renew` runs again what another code or configuration made; otherwise it is kept, and named.
    """

    cases: Sequence[str] = ()
    seeds: Sequence[int] | None = None
    settings: Sequence[str] = ()
    quick: bool = False
    renew: bool = False

    def choose(self, made: Experiment) -> list[str]:
        if unknown := set(self.cases) - set(made.cases):
            raise RecipeError(f"--case {min(unknown)}: the cases of {made.name} are {', '.join(made.cases)}.")
        return list(self.cases or made.cases)


class Experiment(ABC):
    """Each pair of a case and a seed is kept on its own, and goes on where it stopped.

    Attributes:
        name, about: for `filigree list`. cases: their names. notes: what a reader should know. long: it takes days, so
            that `filigree reproduce all` leaves it out; it alone is of the document's size where an entry is scaled.
        resumes: what was interrupted goes on within a case and seed, in place of being made from its beginning.
    """

    name: str
    about: str
    cases: Iterable[str]
    notes: Sequence[str]
    long: bool
    resumes: ClassVar[bool]

    @abstractmethod
    def seeds_of(self, case: str, asked: Asked) -> Sequence[int]: ...
    @abstractmethod
    def config_of(self, case: str, seed: int, asked: Asked) -> str:
        """A hash of all that says what this run is."""

    @abstractmethod
    def needs(self, quick: bool) -> list[str]:
        """The names of the data."""

    @abstractmethod
    def is_there(self, out: Path, case: str, seed: int, asked: Asked) -> bool: ...
    @abstractmethod
    def perform(self, out: Path, case: str, seed: int, asked: Asked, bars: Bars) -> None:
        """Run it, or go on where it stopped."""

    @abstractmethod
    def discard(self, out: Path, case: str, seed: int, asked: Asked) -> None: ...
    @abstractmethod
    def read(self, out: Path, pairs: Sequence[Pair], asked: Asked) -> Any: ...
    @abstractmethod
    def findings(self, found: Any) -> list[Finding]: ...
    @abstractmethod
    def rows(self, found: Any) -> Rows: ...
    @abstractmethod
    def table(self, found: Any) -> Table: ...
    @abstractmethod
    def write_page(self, out: Path, found: Any, lines: Sequence[str]) -> None: ...

    def pairs(self, asked: Asked) -> list[Pair]:
        return [(case, seed) for case in asked.choose(self) for seed in self.seeds_of(case, asked)]

    def config(self, asked: Asked) -> str:
        """A hash of all cases and seeds, for `Summary.config`."""
        whole = Asked(settings=asked.settings, quick=asked.quick)
        return digest([(*pair, self.config_of(*pair, whole)) for pair in self.pairs(whole)])

    def again(self, out: Path, asked: Asked, bars: Bars) -> tuple[Table, list[Finding]]:
        """Run what is missing in `out`; the table, and findings on all that is done there."""
        wanted = self.pairs(asked)
        out.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(out)
        task = bars.count(self.name, len(wanted))
        for case, seed in wanted:
            if not self._is_done(out, case, seed, asked, ledger):
                self._run(out, case, seed, asked, ledger, bars)
                self._summarise(out, asked, ledger)
            bars.advance(task)
        found, findings = self._summarise(out, asked, ledger)
        self._name_kept(out, asked, ledger, bars)
        self.write_page(out, found, [*(f"{its.verdict}: {its.text}" for its in findings), *self.notes])
        bars.remove_task(task)
        return self.table(found), findings

    def _is_done(self, out: Path, case: str, seed: int, asked: Asked, ledger: Ledger) -> bool:
        its = ledger.runs.get((case, seed))
        if asked.renew and (its is None or not its.is_of(self.config_of(case, seed, asked))):
            return False
        return (its is None or its.finished is not None) and self.is_there(out, case, seed, asked)

    def _run(self, out: Path, case: str, seed: int, asked: Asked, ledger: Ledger, bars: Bars) -> None:
        config, before = self.config_of(case, seed, asked), ledger.runs.get((case, seed))
        if asked.renew and (before is None or not before.is_of(config)):
            self.discard(out, case, seed, asked)
            before = None
        its = Run.begin(config)
        if before is not None and before.finished is None and self.resumes:
            its.seconds, its.estimated = before.seconds, before.estimated
            if not before.is_of(config):  # taken up by another code
                its.config = its.code = None
        ledger.runs[case, seed] = its
        ledger.save((case, seed))
        started = time.perf_counter()
        try:
            self.perform(out, case, seed, asked, bars)
            its.end()
        finally:
            its.seconds = (its.seconds or 0.0) + time.perf_counter() - started
            ledger.save((case, seed))
            bars.drop_fits()

    def _summarise(self, out: Path, asked: Asked, ledger: Ledger) -> tuple[Any, list[Finding]]:
        whole = Asked(settings=asked.settings, quick=asked.quick)
        pairs = list(dict.fromkeys([*self.pairs(whole), *self.pairs(asked)]))
        done = [pair for pair in pairs if self._is_done(out, *pair, whole, ledger)]
        found = self.read(out, done, asked)
        findings = self._at_our_size(self.findings(found))
        runs = [ledger.runs.get(pair, Run()) for pair in done]
        newest = max(runs, key=lambda its: its.finished or "", default=Run())
        asked_for = all(its.config == self.config_of(*pair, asked) for its, pair in zip(runs, done, strict=True))
        complete: dict[str, list[int]] = {}
        for case, seed in done:
            complete.setdefault(case, []).append(seed)
        seconds = [its.seconds for its in runs if its.seconds is not None]
        Summary(
            name=self.name, quick=asked.quick, settings=list(asked.settings), complete=complete,
            commit=newest.commit, dirty=newest.dirty, machine=newest.machine, versions=newest.versions,
            code=common([its.code for its in runs]),
            config=self.config(asked) if asked_for else common([its.config and MIXED for its in runs]),
            finished=newest.finished, seconds=sum(seconds) if len(seconds) == len(runs) else None,
            estimated=any(its.estimated for its in runs), findings=[asdict(its) for its in findings],
            notes=list(self.notes), rows=self.rows(found),
        ).save(out / FILE)  # fmt: skip
        return found, findings

    def _at_our_size(self, findings: Sequence[Finding]) -> list[Finding]:
        """Figures of an entry that is made smaller than the document's stay open."""
        return [its.scaled() if its.where in documents.scaled() and not self.long else its for its in findings]

    def _name_kept(self, out: Path, asked: Asked, ledger: Ledger, bars: Bars) -> None:
        others = [
            its for pair in self.pairs(asked)
            if (its := ledger.runs.get(pair)) is None or not its.is_of(self.config_of(*pair, asked))
        ]  # fmt: skip
        if others:
            bars.console.print(
                f"{self.name}: {len(others)} of {len(self.pairs(asked))} runs are kept that another code or "
                f"configuration made; delete {out} to run them again.", highlight=False,
            )  # fmt: skip
