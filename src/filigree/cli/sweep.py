"""`filigree sweep`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from filigree import recipes
from filigree.cli.exits import State
from filigree.cli.options import (
    Drop,
    IndexColumn,
    Missing,
    OutOfSweep,
    Set,
    Source,
    Target,
    Task,
    Transpose,
    a_folder,
    as_settings,
    reading,
)
from filigree.cli.output import out, print_whole, tell
from filigree.optional import needed
from filigree.recipes import RecipeError
from filigree.report import write_report


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
    source: Source = None,
    target: Target = None,
    missing: Missing = None,
    index_column: IndexColumn = None,
    drop: Drop = None,
    task: Task = None,
    transpose: Transpose = False,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    folder: OutOfSweep = None,
) -> None:
    """Search settings for the best accuracy at the least cost: a Pareto front. An interrupted search resumes."""
    needed("plotly", "write_report", "report")  # for the report: fails before the trials, not after
    if engine not in ("optuna", "ray"):
        raise RecipeError(f"--engine {engine}: expected optuna or ray.")
    needed(*(("ray", "--engine ray", "ray") if engine == "ray" else ("optuna", "sweep", "sweep")))
    domains: dict[str, str] = {}
    for key, equals, domain in (part.partition("=") for part in over):
        if not equals or key in domains:
            reason = "is given twice; values have commas between" if equals else "expected KEY=DOMAIN, k=10:200"
            raise RecipeError(f"--over {key}: {reason}.")
        domains[key] = domain
    chosen = (*as_settings(reading(target, missing, index_column, drop, task, transpose)), *(settings or []))
    search = recipes.Sweep(recipe, domains, method, minimize, chosen, source, seed)
    place = a_folder(folder or Path("runs") / f"sweep-{Path(recipe).stem}-{method}")
    State.hint = f"Go on with the same command (--out {place})."
    search.check()
    recipes.refuse_other_search(search, place)
    plain = recipes.on(recipes.load(recipe, chosen), source)
    seconds = {name: trials * each for name, each in recipes.forecast(plain, [method]).items()}
    tell(recipes.forecast_line(seconds, f"{trials} trials at most"))
    began = time.monotonic()
    if engine == "ray":
        summary = recipes.sweep_ray(search, place, trials, minutes)
    else:
        summary = recipes.sweep(search, place, trials, minutes, jobs, out.print)
    quantity = plain.data.task == "regression"
    score = "validation R2" if quantity else "validation accuracy %"
    table = Table(*domains, score, minimize, title="Pareto front", title_justify="left")
    for row in summary["front"]:
        values = [str(row["values"][key]) for key in domains]
        number = f"{row['accuracy']:.3f}" if quantity else f"{100 * row['accuracy']:.2f}"
        table.add_row(*values, number, recipes.cost_text(row["cost"], row.get("spread")))
    print_whole(table)
    if summary["trials"]:
        elapsed = time.monotonic() - began
        tell(f"{len(summary['trials'])} trials, this call took {recipes.duration(elapsed)}")
        tell(f"report: {write_report([place], place / 'report.html')}")
