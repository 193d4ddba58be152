"""`filigree train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from filigree import recipes
from filigree.cli.options import Method, Out, Resume, Set
from filigree.cli.output import known, run_recipe


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
    experiment = recipes.load(recipe, settings or [])
    target, runs = folder or Path("runs") / experiment.name, None if seed is None else [seed]
    run_recipe(experiment, target, known(experiment, methods), runs, source, resume, report)
