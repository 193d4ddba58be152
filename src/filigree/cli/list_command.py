"""`filigree list`."""

from __future__ import annotations

import os

from rich.table import Table

from filigree import data, recipes
from filigree.cli.output import out
from filigree.extensions import extensions


def list_() -> None:
    """Show recipes, data sets, and where to put data that cannot be downloaded."""
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
    for extension in extensions():
        for added in getattr(extension, "add_tables", list)():
            out.print(added)
    if "FILIGREE_DATA" not in os.environ:
        out.print("FILIGREE_DATA is not set: data sets other than digits are downloaded when they are needed.")
