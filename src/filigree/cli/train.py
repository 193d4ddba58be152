"""`filigree train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from filigree import recipes
from filigree.cli.options import (
    Drop,
    IndexColumn,
    Method,
    Missing,
    Out,
    Overwrite,
    Resume,
    Set,
    Source,
    Target,
    Task,
    Transpose,
    as_settings,
    reading,
)
from filigree.cli.output import known, run_recipe
from filigree.recipes import RecipeError


def train(
    recipe: Annotated[str, typer.Argument(help="The name of a recipe (`filigree list`) or a .yaml file.")],
    settings: Set = None,
    source: Source = None,
    target: Target = None,
    missing: Missing = None,
    index_column: IndexColumn = None,
    drop: Drop = None,
    task: Task = None,
    transpose: Transpose = False,
    seed: Annotated[int | None, typer.Option(help="Only this seed (or fold) in place of the recipe's.")] = None,
    folder: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    methods: Method = None,
    report: Annotated[bool, typer.Option(help="Write DIR/report.html.")] = True,
    engine: Annotated[
        str, typer.Option(help="local, or ray: each seed or fold as a task of its own, on many machines.")
    ] = "local",
) -> None:
    """Run an experiment: every method and seed, a record of each, a table and a report."""
    if resume and overwrite:
        raise RecipeError("--resume and --overwrite: give one of them.")
    experiment = recipes.load(
        recipe, as_settings(reading(target, missing, index_column, drop, task, transpose)) + (settings or [])
    )
    place, runs = folder or Path("runs") / experiment.name, None if seed is None else [seed]
    run_recipe(
        experiment, place, known(experiment, methods), runs, source, resume, overwrite, report, needs_resume=True,
        engine=engine,
    )  # fmt: skip
