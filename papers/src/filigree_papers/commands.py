"""The commands `filigree reproduce` and `filigree counts`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from filigree.cli.exits import State
from filigree.cli.options import Set, in_a_folder
from filigree.cli.output import out, print_whole, tell
from filigree.config import visible
from filigree.io.storage import write_json
from filigree.recipes import RecipeError, duration
from filigree_papers import reproduce as reproductions
from filigree_papers.counts import counts as all_counts


def add(app: typer.Typer) -> None:
    app.command("reproduce")(reproduce)
    app.command("counts")(counts)


def reproductions_table() -> Table:
    table = Table("table", "what it is", title="filigree reproduce TABLE", title_justify="left")
    for name, experiment in reproductions.ALL.items():
        table.add_row(name, experiment.about)
    return table


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(help="One of the listing, or `all`; nothing: the listing of all documents.", metavar="NAME"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short run, to see that all works.")] = False,
    cases: Annotated[list[str] | None, typer.Option("--case", help="Only this case. Repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only this seed in place of all.")] = None,
    settings: Set = None,
    untimed: Annotated[
        bool, typer.Option("--untimed", help="Leave times out: the machine does other work. A later run adds them.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where runs are kept; default `runs/NAME`, of `all` `runs`."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Make one run of NAME's record again, or of all short ones: does it still stand?"),
    ] = False,
    document: Annotated[
        str | None, typer.Option(metavar="AUTHOR", help="List only this author's document: `chouliaras`.")
    ] = None,
    records: Annotated[
        list[Path] | None,
        typer.Option(
            "--records", metavar="DIR", help="List by the records in DIR; default `runs` and `papers/results`."
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="List all that is known of each entry.")] = False,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the listing as JSON.", callback=in_a_folder),
    ] = None,
) -> None:
    """List all tables, figures and claims of the documents with verdicts; or run one again, or all.

    Printed figures stand beside ours with difference and verdict. A run goes on where it was stopped; `all` skips what
    has a current record. Exit code of `all`: 1 when one failed, 3 when data are missing.
    """
    if check:
        if quick or cases or seed is not None or settings or folder or untimed or document or json or verbose:
            raise RecipeError("reproduce --check: only a NAME and --records go with it.")
        _check(name, records or list(reproductions.FOLDERS))
    elif name is None:
        if quick or cases or seed is not None or settings or folder or untimed:
            raise RecipeError("reproduce: --quick, --case, --seed, --set, --untimed and --out need a NAME, or `all`.")
        if missing := [str(each) for each in records or () if not each.is_dir()]:
            raise RecipeError(f"--records {missing[0]}: there is no such folder.")
        _list_documents(document, records or list(reproductions.FOLDERS), json, verbose)
    elif document or records or json or verbose:
        raise RecipeError(
            f"reproduce {name}: --document, --records, --verbose and --json are of the listing, without a NAME."
        )
    elif name == "all":
        if cases or seed is not None or settings or untimed:
            raise RecipeError("reproduce all: --case, --seed, --set and --untimed are of single reproductions.")
        _reproduce_all(folder or Path("runs"), quick)
    elif name not in reproductions.ALL:
        raise RecipeError(f"there is no table {name!r}. `filigree reproduce` lists them.")
    else:
        chosen = reproductions.ALL[name]
        target = folder or Path("runs") / (f"{name}-quick" if quick else name)
        out.print(f"[bold]{name}[/bold]: {chosen.about}")
        minutes = reproductions.newest_record(chosen, [target.parent, *reproductions.FOLDERS], quick)[0].minutes
        if minutes is not None:
            out.print(f"about {duration(60 * minutes)} for all of its runs, as they took before")
        State.hint = f"Go on with the same command (--out {target})."
        chosen_seeds = None if seed is None else [seed]
        request = reproductions.Request(cases or (), chosen_seeds, settings or (), quick, timed=not untimed)
        with reproductions.Bars(out) as bars:
            table, findings = chosen.again(target, request, bars)
        print_whole(table)
        for finding in findings:
            out.print(f"{finding.verdict:>10}  {escape(finding.text)} [dim]{escape(finding.where)}[/dim]")
        for line in chosen.notes:
            out.print(f"[dim]- {escape(visible(line))}[/dim]")
        tell(f"records, summary and report: {target}")


def _list_documents(document: str | None, folders: list[Path], json: Path | None, verbose: bool) -> None:
    entries, lines = reproductions.list_entries(reproductions.all_documents(), reproductions.ALL, folders, document)
    for part in reproductions.details(entries) if verbose else reproductions.tables(entries, out.width):
        out.print(part)
    out.print(f"{reproductions.totals(entries)} ~: minutes estimated, not measured for all runs.")
    if not verbose:
        tell("--verbose: each entry with its findings, commands and reasons")
    for line in lines:
        out.print(f"[dim]- {escape(visible(line))}[/dim]")
    if json is not None:
        write_json(json, reproductions.plain(entries))
        tell(f"wrote {json}")


def _check(name: str | None, folders: list[Path]) -> None:
    """Check the record of one reproduction, or all that are not current and whose run takes about two minutes."""
    if name is not None and name not in reproductions.ALL:
        raise RecipeError(f"there is no table {name!r}. `filigree reproduce` lists them.")
    for chosen in [name] if name is not None else reproductions.ALL:
        record = reproductions.newest_record(reproductions.ALL[chosen], folders)[0]
        minutes = (record.minutes or 0.0) / max(record.total, 1)
        if record.path is None:
            if name is not None:
                raise RecipeError(f"reproduce {name} --check: it has no record in {', '.join(map(str, folders))}.")
        elif name is None and (record.state.startswith(("current", "checked")) or minutes > 2):
            if minutes > 2 and not record.state.startswith(("current", "checked")):
                out.print(f"{chosen}: not checked, a run takes about {minutes:.0f} minutes; name it to check it")
        else:
            try:
                with reproductions.Bars(out) as bars:
                    done = reproductions.check(reproductions.ALL[chosen], record.path, bars)
            except RecipeError as error:
                if name is not None:
                    raise
                out.print(f"{chosen}: not checked: {escape(str(error))}", highlight=False)
                continue
            word = "[green]checked[/]" if done.agrees else "[red]differs[/]"
            out.print(
                f"{chosen}: {word}, {done.part} of {escape(done.case)}, seed {done.seed}: {done.agree} of "
                f"{done.figures} figures agree; furthest apart: {escape(done.worst)}", highlight=False,
            )  # fmt: skip


def _reproduce_all(folder: Path, quick: bool) -> None:
    everything = reproductions.chosen(reproductions.ALL, quick)
    expected = reproductions.estimate(everything, folder, reproductions.FOLDERS, quick)
    out.print(f"{len(everything)} reproductions{', quick' if quick else ''}: {expected}.")
    State.hint = "Go on with the same command."
    started = time.perf_counter()
    with reproductions.Bars(out) as bars:
        outcome = reproductions.run_all(reproductions.ALL, folder, quick, bars)
    print_whole(reproductions.verdicts(reproductions.ALL, folder, quick, outcome))
    out.print(
        f"{len(outcome.seconds)} run, {len(outcome.current)} current, {len(outcome.failed)} failed, "
        f"{len(outcome.missing)} without data: {(time.perf_counter() - started) / 60:.1f} minutes"
    )
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def counts() -> None:
    """Count the parameters of the seven networks of Chouliaras 2021, appendix B, beside the printed figures."""
    headings = "dense, printed", "ours", "sparse, printed", "drawn distinct", "duplicates merged", "nearer", "off by"
    table = Table("setting", *headings)
    for row in all_counts():
        numbers = (row.printed_dense, row.dense, row.printed_sparse, row.distinct, row.merged)
        table.add_row(row.setting, *(f"{n:,}" for n in numbers), row.nearer, f"{row.difference:+.1%}")
    print_whole(table)
