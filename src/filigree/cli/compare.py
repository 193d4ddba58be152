"""`filigree compare`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from filigree import data, recipes
from filigree.cli.options import (
    Drop,
    IndexColumn,
    Method,
    Missing,
    OutOfComparison,
    Overwrite,
    Set,
    Target,
    Task,
    Transpose,
    as_settings,
    in_a_folder,
    reading,
)
from filigree.cli.output import known, records, run_recipe, show
from filigree.data.readers import is_file_name
from filigree.recipes import RecipeError
from filigree.report import refuse_incomparable


def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            help="A data set's name (`filigree list`) or a file of your own (.csv, .npz, ...): every method is run on "
            "it. Or folders of runs: those are shown.",
            metavar="DATA | RUN...",
        ),
    ],
    target: Target = None,
    missing: Missing = None,
    index_column: IndexColumn = None,
    drop: Drop = None,
    task: Task = None,
    transpose: Transpose = False,
    settings: Set = None,
    methods: Method = None,
    seed: Annotated[int | None, typer.Option(help="Only this seed (or fold) in place of the recipe's.")] = None,
    folder: OutOfComparison = None,
    overwrite: Overwrite = False,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Also write the figures, without histories, as JSON.", callback=in_a_folder
        ),
    ] = None,
) -> None:
    """Every method on the same data with the same budget, beside dense; or recorded runs in one table.

    Accuracy with its 95% interval, parameters, bytes, training time, latency, and energy where the machine measures
    it, each with its ratio to dense; a report with a Pareto chart. An interrupted comparison resumes.
    """
    if len(what) > 1 and (given := [name for name in what if name in data.names() or is_file_name(name)]):
        raise RecipeError(f"compare {given[0]}: one data set or file at a time, or folders of runs. Got {len(what)}.")
    source = what[0] if len(what) == 1 and (what[0] in data.names() or is_file_name(what[0])) else None
    options = reading(target, missing, index_column, drop, task, transpose)
    if source is None:
        if absent := [name for name in what if not Path(name).exists()]:
            raise RecipeError(f"compare {absent[0]}: {_what_it_could_be(absent[0])}")
        if settings or methods or seed is not None or folder or options or overwrite:
            raise RecipeError(f"compare {what[0]}: options other than --json are for data sets, not for runs.")
        shown = records([Path(run) for run in what])
        refuse_incomparable(shown)
        show(shown, json)
        return
    own = f"compare-{source}"
    settings = as_settings(options) + (settings or [])
    recipe = recipes.load(own if own in recipes.names() else "compare", settings)
    recipe = recipe.model_copy(update={"name": f"compare-{Path(source).name.partition('.')[0]}"})
    place = folder or Path("runs") / recipe.name
    run_recipe(
        recipe, place, known(recipe, methods), None if seed is None else [seed],
        source, resume=not overwrite, overwrite=overwrite, report=True, json=json,
    )  # fmt: skip


def _what_it_could_be(name: str) -> str:
    close = difflib.get_close_matches(name, data.names(), n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return (
        f"no data set and no folder of runs has this name. {hint}Data sets are {', '.join(data.names())}, files end "
        f"in {', '.join(data.SUFFIXES)}; else it is a folder of runs."
    )
