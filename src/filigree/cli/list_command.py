"""`filigree list`."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.table import Table

from filigree import data, recipes
from filigree.cli.output import out, tell
from filigree.extensions import extensions


def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="All that is said of this one; nothing: a line for each.")
    ] = None,
) -> None:
    """Show recipes, data sets, and where to put data that cannot be downloaded."""
    if name is not None:
        return _whole(name)
    title = "filigree train RECIPE; filigree list RECIPE says more of one"
    table = Table("recipe", "what it shows", title=title, title_justify="left")
    for each in sorted(recipes.names(), key=lambda each: each != "demo"):
        table.add_row(each, " ".join(recipes.load(each).about.split()))
    out.print(_of_lines(table))
    table = Table("data set", "samples", "features", "classes", "here", "source", title="data", title_justify="left")
    for each in data.names():
        facts = data.describe(each)
        sizes = f"{facts.samples:,}", f"{facts.features:,}", str(facts.classes)
        table.add_row(each, *sizes, "yes" if facts.present else "no", facts.source)
    out.print(table)
    for extension in extensions():
        for added in extension.add_tables() if hasattr(extension, "add_tables") else ():
            out.print(_of_lines(added))
    if "FILIGREE_DATA" not in os.environ:
        out.print("FILIGREE_DATA is not set: data sets other than digits are downloaded when they are needed.")
    return None


def _of_lines(table: Table) -> Table:
    """A table of two columns with a line a row: the second cell is cut where the terminal ends."""
    first, last = table.columns
    names = max((len(str(cell)) for cell in first.cells), default=0)
    last.no_wrap, last.max_width = True, max(20, out.width - names - 7)  # three rules, four blanks
    return table


def _whole(name: str) -> None:
    recipe = recipes.load(name)
    for text in (recipe.about, recipe.expect):
        if text.strip():
            tell(" ".join(text.split()))
    count = len(list(recipe.runs()))
    tell(f"data {recipe.data.name}, methods {', '.join(recipe.methods)}, {count} run{'s' * (count > 1)} each")
    tell(f"filigree train {name}")
