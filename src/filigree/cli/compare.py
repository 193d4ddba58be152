"""`filigree compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from filigree import data, recipes
from filigree.cli.options import Method, Out, Set, in_a_folder
from filigree.cli.output import known, records, run_recipe, show
from filigree.recipes import RecipeError
from filigree.report import refuse_incomparable


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
            "--json", metavar="FILE", help="Also write the figures, without histories, as JSON.", callback=in_a_folder
        ),
    ] = None,
) -> None:
    """Every method on the same data with the same budget, beside dense; or recorded runs in one table.

    Accuracy with its 95% interval, parameters, bytes, training time, latency, and energy where the machine measures
    it, each with its ratio to dense; a report with a Pareto chart. An interrupted comparison resumes.
    """
    is_data = what[0] in data.names() or Path(what[0]).suffix.lower() in data.SUFFIXES
    source = what[0] if len(what) == 1 and is_data else None
    if source is None:
        if settings or methods or seed is not None or folder:
            raise RecipeError(f"compare {what[0]}: --set, --method, --seed and --out are for data sets, not for runs.")
        shown = records([Path(run) for run in what])
        refuse_incomparable(shown)
        show(shown, json)
        return
    own = f"compare-{source}"
    recipe = recipes.load(own if own in recipes.names() else "compare", settings or [])
    recipe = recipe.model_copy(update={"name": f"compare-{Path(source).stem}"})
    target = folder or Path("runs") / recipe.name
    run_recipe(
        recipe, target, known(recipe, methods), None if seed is None else [seed],
        None if source == recipe.data.name else source, resume=True, report=True, json=json,
    )  # fmt: skip
