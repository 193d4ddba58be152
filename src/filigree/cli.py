"""The command line: `filigree --help`."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import Progress
from rich.table import Table

from filigree import data, recipes
from filigree import reproduce as reproductions
from filigree.analyze import analyze
from filigree.config import visible
from filigree.convert import compress_
from filigree.cost import stored
from filigree.exits import State, run
from filigree.export import export
from filigree.recipes import Recipe, RecipeError, compressions
from filigree.report import console_table, load_comparisons, refuse_incomparable, summary, write_report, write_site
from filigree.saving import save
from filigree.storage import write_json
from filigree.train import Record, evaluate, find_records, progress_columns
from filigree.trained import example_for, load_samples, load_trained, run_of

app = typer.Typer(
    help="""filigree: neural networks that cost what they use.

    Begin with `filigree demo`; `filigree list` shows the experiments; `filigree train RECIPE` runs one. Errors are one
    line; exit code 2 means that the command was misspelt, 1 that something else went wrong.""",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
out = Console()

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the recipe: `--set training.epochs=5`. Repeatable."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where runs are kept; default `runs/RECIPE`.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run stopped; finished runs are kept.")
]
Model = Annotated[
    Path, typer.Argument(help="A model file that `train` or fg.save wrote (runs/.../model.safetensors), or a run.")
]
Method = Annotated[list[str] | None, typer.Option("--method", metavar="NAME", help="Only this method. Repeatable.")]


def _in_a_folder(file: Path | None) -> Path | None:
    """Said before hours of work, not after them."""
    if file is not None and not file.absolute().parent.is_dir():
        raise RecipeError(f"{file}: there is no folder {file.parent} to write to.")
    if file is not None and file.is_dir():
        raise RecipeError(f"{file}: a folder; the name of a file is needed.")
    return file


def _tell(text: str) -> None:
    """A line as it is: the names of files may look like markup, and are not to be broken."""
    out.print(visible(text), markup=False, highlight=False, soft_wrap=True)


def _version(asked: bool) -> None:
    if asked:
        print(importlib.metadata.version("filigree"))
        raise typer.Exit


@app.callback()
def main_options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    State.debug = debug
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@app.command()
def demo(settings: Set = None, folder: Out = None) -> None:
    """Train dense and sparse networks side by side on the embedded digits, and write a report."""
    recipe = recipes.load("demo", settings or [])
    _run(recipe, folder or Path("runs/demo"), None, None, None, resume=False, report=True)


@app.command("list")
def list_() -> None:
    """Show recipes, data sets and where to put what is not to be had."""
    table = Table("recipe", "what it shows", title="filigree train RECIPE", title_justify="left")
    for name in recipes.names():
        recipe = recipes.load(name)
        table.add_row(name, recipe.about.strip() + (f" [dim]{recipe.expect.strip()}[/dim]" if recipe.expect else ""))
    out.print(table)
    table = Table("data set", "samples", "features", "classes", "here", "source", title="data", title_justify="left")
    for name in data.names():
        facts = data.describe(name)
        table.add_row(
            name, f"{facts.samples:,}", f"{facts.features:,}", str(facts.classes), "yes" if facts.present else "no",
            facts.source,
        )  # fmt: skip
    out.print(table)
    table = Table("table", "what it is", title="filigree reproduce TABLE", title_justify="left")
    for name, made in reproductions.ALL.items():
        table.add_row(name, made.about)
    out.print(table)
    if "FILIGREE_DATA" not in os.environ:
        out.print("FILIGREE_DATA is not set: data sets other than digits are downloaded when they are needed.")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="The name of a recipe (`filigree list`) or a .yaml file.")],
    settings: Set = None,
    source: Annotated[
        str | None,
        typer.Option("--data", metavar="D", help="A data set's name, or a file of your own (.npz, .csv, .mat)."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Only this seed (or fold) in place of the recipe's.")] = None,
    folder: Out = None,
    resume: Resume = False,
    methods: Method = None,
    report: Annotated[bool, typer.Option(help="Write DIR/report.html.")] = True,
) -> None:
    """Run an experiment: every method and seed, a record of each, a table and a report."""
    made = recipes.load(recipe, settings or [])
    target, runs = folder or Path("runs") / made.name, None if seed is None else [seed]
    _run(made, target, _known(made, methods), runs, source, resume, report)


@app.command()
def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(help="One of the listing, or `all`; nothing: the listing of all documents.", metavar="NAME"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short run, to see that all works.")] = False,
    cases: Annotated[list[str] | None, typer.Option("--case", help="Only this case. Repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only this seed in place of all.")] = None,
    settings: Set = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where runs are kept; default `runs/NAME`, of `all` `runs`."),
    ] = None,
    document: Annotated[str | None, typer.Option(help="List only this document: 000 to 004.")] = None,
    records: Annotated[
        list[Path] | None,
        typer.Option("--records", metavar="DIR", help="List by the records in DIR; default `runs` and `results`."),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the listing as JSON.", callback=_in_a_folder),
    ] = None,
) -> None:
    """List all tables, figures and claims of the documents with verdicts; or run one again, or all.

    Printed figures stand beside ours with difference and verdict. A run goes on where it was stopped; `all` skips what
    has a current record. Exit code of `all`: 1 when one failed, 3 when data are missing.
    """
    if name is None:
        if quick or cases or seed is not None or settings or folder:
            raise RecipeError("reproduce: --quick, --case, --seed, --set and --out need a NAME, or `all`.")
        if missing := [str(it) for it in records or () if not it.is_dir()]:
            raise RecipeError(f"--records {missing[0]}: there is no such folder.")
        _list_documents(document, records or list(reproductions.FOLDERS), json)
    elif document or records or json:
        raise RecipeError(f"reproduce {name}: --document, --records and --json are of the listing, without a NAME.")
    elif name == "all":
        if cases or seed is not None or settings:
            raise RecipeError("reproduce all: --case, --seed and --set are of single reproductions.")
        _reproduce_all(folder or Path("runs"), quick)
    elif name not in reproductions.ALL:
        raise RecipeError(f"there is no table {name!r}. `filigree reproduce` lists them.")
    else:
        chosen = reproductions.ALL[name]
        target = folder or Path("runs") / (f"{name}-quick" if quick else name)
        out.print(f"[bold]{name}[/bold]: {chosen.about}")
        State.hint = f"Go on with the same command (--out {target})."
        asked = reproductions.Asked(cases or (), None if seed is None else [seed], settings or (), quick)
        with reproductions.Bars(out) as bars:
            table, findings = chosen.again(target, asked, bars)
        _print_whole(table)
        for finding in findings:
            out.print(f"{finding.verdict:>10}  {escape(finding.text)} [dim]{escape(finding.where)}[/dim]")
        for line in chosen.notes:
            out.print(f"[dim]- {escape(visible(line))}[/dim]")
        _tell(f"records, summary and report: {target}")


def _list_documents(document: str | None, folders: list[Path], json: Path | None) -> None:
    entries, lines = reproductions.list_entries(reproductions.all_documents(), reproductions.ALL, folders, document)
    for table in reproductions.tables(entries):
        out.print(table)
    out.print(f"{reproductions.totals(entries)} ~: minutes estimated, not measured for all runs.")
    for line in lines:
        out.print(f"[dim]- {escape(visible(line))}[/dim]")
    if json is not None:
        write_json(json, reproductions.plain(entries))
        _tell(f"wrote {json}")


def _reproduce_all(folder: Path, quick: bool) -> None:
    everything = reproductions.chosen(reproductions.ALL, quick)
    expected = reproductions.estimate(everything, folder, reproductions.FOLDERS, quick)
    out.print(f"{len(everything)} reproductions{', quick' if quick else ''}: {expected}.")
    State.hint = "Go on with the same command."
    started = time.perf_counter()
    with reproductions.Bars(out) as bars:
        outcome = reproductions.run_all(reproductions.ALL, folder, quick, bars)
    _print_whole(reproductions.verdicts(reproductions.ALL, folder, quick, outcome))
    out.print(
        f"{len(outcome.seconds)} run, {len(outcome.current)} current, {len(outcome.failed)} failed, "
        f"{len(outcome.missing)} without data: {(time.perf_counter() - started) / 60:.1f} minutes"
    )
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def _print_whole(table: Table) -> None:
    natural = Measurement.get(out, out.options.update(max_width=240), table).maximum
    Console(width=max(out.width, natural)).print(table)  # a cut figure is no figure


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(help="The name of a recipe (`filigree list`) or a .yaml file.")],
    over: Annotated[
        list[str],
        typer.Option(
            "--over",
            metavar="KEY=DOMAIN",
            help="What to search: `k=10:200:log`, `training.lr=0.001,0.01`. A key is a path as of `--set`, or the end "
            "of one within the method (`sensitivity.k`, `epsilon`, `zeta`). Repeatable.",
        ),
    ],
    method: Annotated[str, typer.Option("--method", help="The method of the recipe to search for.")],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier calls included.")] = 20,
    minutes: Annotated[float | None, typer.Option(min=0, help="End the search after these.")] = None,
    minimize: Annotated[
        str, typer.Option(help="The cost beside the validation accuracy: " + ", ".join(recipes.COSTS) + ".")
    ] = "backward_ms",
    jobs: Annotated[int, typer.Option(min=1, help="Processes that search at once (timings are then less sharp).")] = 1,
    engine: Annotated[str, typer.Option(help="optuna, or ray: many machines.")] = "optuna",
    settings: Set = None,
    source: Annotated[str | None, typer.Option("--data", metavar="D", help="As of `train`.")] = None,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    folder: Out = None,
) -> None:
    """Search settings for the best accuracy at the least cost: a Pareto front. It goes on where it was stopped."""
    domains = {key: domain for key, _, domain in (part.partition("=") for part in over)}
    wanted = recipes.Sweep(recipe, domains, method, minimize, tuple(settings or []), source, seed)
    target = folder or Path("runs") / f"sweep-{Path(recipe).stem}-{method}"
    State.hint = f"Go on with the same command (--out {target})."
    if engine == "ray":
        found = recipes.sweep_ray(wanted, target, trials, minutes)
    elif engine == "optuna":
        found = recipes.sweep(wanted, target, trials, minutes, jobs, out.print)
    else:
        raise RecipeError(f"--engine {engine}: expected optuna or ray.")
    table = Table(*domains, "validation accuracy %", minimize, title="Pareto front", title_justify="left")
    for row in found["front"]:
        values = [str(row["values"][key]) for key in domains]
        table.add_row(*values, f"{100 * row['accuracy']:.2f}", f"{row['cost']:.4g}")
    out.print(table)
    if found["trials"]:
        _tell(f"report: {write_report([target], target / 'report.html')}")


@app.command("compress")
def compress(
    model: Model,
    how: Annotated[str, typer.Argument(help=f"One of {', '.join(compressions())}.", metavar="METHOD")],
    source: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="D",
            help="A data set's name, or a file (.npz, .csv, .mat): its training part calibrates, its test part judges.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The compressed model.", callback=_in_a_folder)
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An argument of the method: `--set samples=0.12`. Repeatable."),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="GLOB", help="Only modules with these names. Repeatable.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Training samples that calibrate; 0: none.")] = 2000,
    seed: Annotated[int | None, typer.Option(help="Of split and samples. Default: the run's own, or 0.")] = None,
) -> None:
    """Compress a trained model: pruning, sampling, paths, low rank; no retraining; accuracy before and after."""
    network = load_trained(model)
    config = recipes.compression(how, settings or [])
    trained_by = run_of(model, source) if seed is None else None
    split = load_samples(network, source, f"compress {model}", seed or 0, trained_by)
    chosen = torch.randperm(len(split.train.x), generator=torch.Generator().manual_seed(seed or 0))[:samples]
    sizes, scores = [], []
    for step in range(2):
        scores.append(evaluate(network, split.test)["accuracy"])
        sizes.append(stored(network).bytes_disk)
        if step == 0:
            report = compress_(network, config, split.train.x[chosen] if samples else None, where)
            _tell(str(report))
    save(network, output)
    out.print(f"test accuracy {100 * scores[0]:.2f}% -> {100 * scores[1]:.2f}%, bytes {sizes[0]:,} -> {sizes[1]:,}")
    _tell(f"wrote {output}")


@app.command("export")
def export_(
    model: Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="m.onnx, or m.c (with m.h).", callback=_in_a_folder)
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="D",
            help="A data set's name or file: its test samples are the example. For images it is needed.",
        ),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="C: also what trains and rewires on the device.")
    ] = False,
) -> None:
    """Write a trained model as ONNX, or as one C99 file without dependencies; its outputs are compared."""
    network = load_trained(model)
    example = example_for(network, source, f"export {model}")
    _tell(str(export(network, output, example, training=training)))


@app.command()
def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            help="A data set's name (`filigree list`) or a file of your own (.npz, .csv, .mat): every method is run on "
            "it. Or folders of runs: those are shown.",
            metavar="DATA | RUN...",
        ),
    ],
    settings: Set = None,
    methods: Method = None,
    seed: Annotated[int | None, typer.Option(help="Only this seed (or fold) in place of the recipe's.")] = None,
    folder: Out = None,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Also write the figures, without histories, as JSON.", callback=_in_a_folder
        ),
    ] = None,
) -> None:
    """Every method on the same data with the same budget, beside dense; or recorded runs in one table.

    Accuracy with its 95% interval, parameters, bytes, training time, latency, and energy where the machine tells, each
    with its ratio to dense; a report with a Pareto chart. It goes on where it was stopped.
    """
    is_data = what[0] in data.names() or Path(what[0]).suffix.lower() in data.SUFFIXES
    source = what[0] if len(what) == 1 and is_data else None
    if source is None:
        if settings or methods or seed is not None or folder:
            raise RecipeError(f"compare {what[0]}: --set, --method, --seed and --out are for data sets, not for runs.")
        records = _records([Path(run) for run in what])
        refuse_incomparable(records)
        _show(records, json)
        return
    known = f"compare-{source}" if f"compare-{source}" in recipes.names() else "compare"
    recipe = recipes.load(known, settings or [])
    recipe = recipe.model_copy(update={"name": f"compare-{Path(source).stem}"})
    target = folder or Path("runs") / recipe.name
    _run(
        recipe, target, _known(recipe, methods), None if seed is None else [seed],
        None if source == recipe.data.name else source, resume=True, report=True, json=json,
    )  # fmt: skip


def _show(records: list[dict[str, Any]], json: Path | None) -> None:
    table = console_table(records)
    _print_whole(table)
    if json is not None:
        short = [
            {key: value for key, value in r.items() if key not in ("history", "topology", "folder")} for r in records
        ]
        write_json(json, short)
        _tell(f"wrote {json}")


def _known(recipe: Recipe, methods: list[str] | None) -> list[str] | None:
    for method in methods or []:
        if method not in recipe.methods:
            raise RecipeError(f"--method {method}: the methods of {recipe.name} are {', '.join(recipe.methods)}.")
    return methods


@app.command()
def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of runs, or of many; nothing: all that there is.", metavar="RUN..."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PAGE", help="The page to write (report.html), or the folder (report)."),
    ] = None,
) -> None:
    """Write one self-contained HTML page about recorded runs; without runs a folder of pages about all records.

    That is report/index.html: the comparisons of `filigree compare`, and every table, figure and claim of the source
    documents with verdicts, from the records in `runs` and `results`.
    """
    if runs:
        _tell(f"wrote {write_report(_records(runs), output or Path('report.html'))}")
        return
    folders = reproductions.FOLDERS
    entries, lines = reproductions.list_entries(reproductions.all_documents(), reproductions.ALL, folders)
    for line in lines:
        out.print(f"[dim]- {escape(visible(line))}[/dim]")
    charts = {name: getattr(made, "charts", ()) for name, made in reproductions.ALL.items()}
    compared = load_comparisons(folders, lambda line: out.print(f"[dim]- {escape(visible(line))}[/dim]"))
    folder = output or Path("report")
    _tell(f"wrote {write_site(folder, reproductions.plain(entries), compared, charts)}")


@app.command("analyze")
def analyze_(
    model: Model,
    nulls: Annotated[int, typer.Option(min=2, help="Erdos-Renyi graphs drawn for comparison.")] = 10,
) -> None:
    """Is a trained topology still random? Degrees, clustering, paths against the Erdos-Renyi null."""
    print(analyze(load_trained(model), nulls=nulls))


@app.command()
def counts() -> None:
    """Count the parameters of the seven networks of 001, appendix B, beside the printed figures."""
    headings = "dense, printed", "ours", "sparse, printed", "drawn distinct", "duplicates merged", "nearer", "off by"
    table = Table("setting", *headings)
    for row in recipes.counts():
        numbers = (row.printed_dense, row.dense, row.printed_sparse, row.distinct, row.merged)
        table.add_row(row.setting, *(f"{n:,}" for n in numbers), row.nearer, f"{row.difference:+.1%}")
    out.print(table)


def _run(
    recipe: Recipe, folder: Path, methods: list[str] | None, numbers: list[int] | None, source: str | None,
    resume: bool, report: bool, json: Path | None = None,
) -> None:  # fmt: skip
    out.print(f"[bold]{escape(recipe.name)}[/bold]: {escape(visible(recipe.about.strip()))}")
    again = sys.argv[1:] if resume else [*sys.argv[1:], "--resume"]
    if again[0] == "demo":
        again[:1] = ["train", "demo", "--out", str(folder)]
    State.hint = f"Go on with: filigree {shlex.join(again)}"
    with Progress(*progress_columns(), console=out) as progress:
        folders = recipes.run(
            recipe, folder, methods=methods, runs=numbers, source=source, resume=resume, progress=progress
        )
    whole = dict.fromkeys([*recipes.finished(recipe, folder, source), *folders])  # with what earlier commands ran
    records = [Record.load(run).model_dump() for run in whole]
    write_json(folder / "comparison.json", summary(records))
    _show(records, json)
    for note in dict.fromkeys(note for record in records for note in record["notes"]):
        out.print(f"[dim]- {escape(visible(note))}[/dim]")
    if report:
        _tell(f"report: {write_report(records, folder / 'report.html')}")


def _records(paths: list[Path]) -> list[dict[str, Any]]:
    files = {file.resolve(): file for path in paths for file in find_records(path)}  # each once
    return [Record.load(file).model_dump() for file in files.values()]


def main() -> None:
    run(app)


if __name__ == "__main__":
    main()
