"""`filigree demo`."""

from __future__ import annotations

from pathlib import Path

from filigree import recipes
from filigree.cli.options import Out, Set
from filigree.cli.output import run_recipe


def demo(settings: Set = None, folder: Out = None) -> None:
    """Train dense and sparse networks side by side on the embedded digits, and write a report."""
    recipe = recipes.load("demo", settings or [])
    run_recipe(recipe, folder or Path("runs/demo"), None, None, None, resume=False, report=True)
