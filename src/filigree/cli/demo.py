"""`filigree demo`."""

from __future__ import annotations

from pathlib import Path

from filigree import recipes
from filigree.cli.options import OutOfDemo, Overwrite, Set
from filigree.cli.output import run_recipe


def demo(settings: Set = None, folder: OutOfDemo = None, overwrite: Overwrite = False) -> None:
    """Train dense and sparse networks side by side on the embedded digits, and write a report.

    Runs that are there already are kept, and shown again.
    """
    recipe = recipes.load("demo", settings or [])
    target = folder or Path("runs/demo")
    run_recipe(recipe, target, None, None, None, resume=not overwrite, overwrite=overwrite, report=True)
