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
        sizes = f"{facts.samples:,}", f"{facts.features:,}", str(facts.classes)
        table.add_row(name, *sizes, "yes" if facts.present else "no", facts.source)
    out.print(table)
    for extension in extensions():
        if hasattr(extension, "add_tables"):
            for added in extension.add_tables():
                out.print(added)
    if "FILIGREE_DATA" not in os.environ:
        out.print("FILIGREE_DATA is not set: data sets other than digits are downloaded when they are needed.")
