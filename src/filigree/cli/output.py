"""What commands print, and how they run a recipe."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import Progress
from rich.table import Table

from filigree import data, recipes
from filigree.cli.exits import State
from filigree.cli.options import a_folder
from filigree.config import visible
from filigree.io.storage import write_json
from filigree.optional import needed
from filigree.recipes import MODEL, Recipe, RecipeError
from filigree.report import console_table, summary, write_report
from filigree.train import Record, find_records, processes, progress_columns

out = Console(quiet=not processes.is_main())


def tell(text: str) -> None:
    """Print a line as it is: file names may look like markup, and must not be wrapped."""
    out.print(visible(text), markup=False, highlight=False, soft_wrap=True)


def print_whole(table: Table) -> None:
    natural = Measurement.get(out, out.options.update(max_width=240), table).maximum
    Console(width=max(out.width, natural)).print(table)  # a cut figure is no figure


def show(records: list[dict[str, Any]], json: Path | None) -> None:
    table = console_table(records)
    print_whole(table)
    if json is not None:
        short = [
            {key: value for key, value in r.items() if key not in ("history", "topology", "folder")} for r in records
        ]
        write_json(json, short)
        tell(f"wrote {json}")


def run_recipe(
    recipe: Recipe, folder: Path, methods: list[str] | None, numbers: list[int] | None, source: str | None,
    resume: bool, overwrite: bool, report: bool, json: Path | None = None, needs_resume: bool = False,
    engine: str = "local",
) -> None:  # fmt: skip
    """Run a recipe, show its figures and write its report. `needs_resume`: the command goes on with --resume only."""
    if engine not in ("local", "ray"):
        raise RecipeError(f"--engine {engine}: expected local or ray.")
    if engine == "ray":
        needed("ray", "--engine ray", "ray")
    if report:
        needed("plotly", "write_report", "report")  # fails before hours of training, not after them
    a_folder(folder)
    recipe = recipes.on(recipe, source)
    out.print(f"[bold]{escape(recipe.name)}[/bold]: {escape(visible(recipe.about.strip()))}")
    about_data = _about(recipe)
    for line in about_data:
        tell(line)
    again = [argument for argument in sys.argv[1:] if argument not in ("--overwrite", "--resume")]
    if needs_resume:
        again.append("--resume")
    State.hint = f"Go on with: filigree {shlex.join(again)}"
    recipes.refuse_earlier(recipe, folder, methods, numbers, resume=resume, overwrite=overwrite)
    done = recipes.finished(recipe, folder) if resume else []
    if not processes.several() and (line := recipes.forecast_line(recipes.forecast(recipe, methods, numbers, done))):
        tell(line)
    if engine == "ray":
        recipes.run_ray(recipe, folder, methods=methods, runs=numbers, resume=resume, overwrite=overwrite)
        resume, overwrite = True, False  # what is left are times of single steps, on one machine
    with Progress(*progress_columns(), console=out) as progress:
        folders = recipes.run(
            recipe, folder, methods=methods, runs=numbers, resume=resume, overwrite=overwrite, progress=progress
        )
    if not processes.is_main():
        return
    whole = dict.fromkeys([*recipes.finished(recipe, folder), *folders])  # with what earlier commands ran
    records = [Record.load(run).model_dump() for run in whole]
    write_json(folder / "comparison.json", summary(records))
    show(records, json)
    for line in recipes.gains([Record.load(run) for run in whole], records[0]["config"]["data"]["classes"]):
        tell(line)
    for note in dict.fromkeys(note for record in records for note in record["notes"] if note not in about_data):
        out.print(f"[dim]- {escape(visible(note))}[/dim]")
    use = "show" if recipe.data.unit is None else "generate"
    tell(f"models: {folder / 'METHOD-RUN' / MODEL}; next, for instance: filigree {use} {folders[-1]}")
    if report:
        tell(f"report: {write_report(records, folder / 'report.html')}")


def _about(recipe: Recipe) -> list[str]:
    """Lines on a recipe's data before it runs."""
    if recipe.data.unit is not None:
        return data.load_text(recipe.data.name, unit=recipe.data.unit, length=recipe.data.length).notes
    reading = recipe.data.model_dump(include={"target", "missing", "index_column", "drop", "task", "transpose"})
    facts = data.describe(recipe.data.name, **reading)
    sizes = f"{facts.samples:,} samples, {facts.features:,} features, {facts.classes:,} classes"
    return list(facts.notes) or [f"{recipe.data.name}: {sizes}; {facts.source}"]


def known(recipe: Recipe, methods: list[str] | None) -> list[str] | None:
    for method in methods or []:
        if method not in recipe.methods:
            raise RecipeError(f"--method {method}: the methods of {recipe.name} are {', '.join(recipe.methods)}.")
    return methods


def records(paths: list[Path]) -> list[dict[str, Any]]:
    files = {file.resolve(): file for path in paths for file in find_records(path)}  # each once
    return [Record.load(file).model_dump() for file in files.values()]
