"""The five source documents of filigree, reproduced: an extension of the library (see `filigree.extensions`)."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from filigree_papers import models
from filigree_papers.headlines import HEADLINES

RECIPES = files("filigree_papers") / "recipes"
RECORDS = (Path("papers/results"), Path("results"))


def add_commands(app: Any) -> None:
    """Add `filigree reproduce` and `filigree counts`."""
    from filigree_papers import commands

    commands.add(app)


def add_tables() -> list[Any]:
    """The table of what `filigree reproduce` runs, for `filigree list`."""
    from filigree_papers import commands

    return [commands.reproductions_table()]


def site(folders: list[Path]) -> tuple[list[Any], list[str], dict[str, Any]]:
    """The entries of all documents with their verdicts, lines about unreadable records, and the charts of each page."""
    from filigree_papers import reproduce

    entries, lines = reproduce.list_entries(reproduce.all_documents(), reproduce.ALL, folders)
    charts = {name: getattr(experiment, "charts", ()) for name, experiment in reproduce.ALL.items()}
    return reproduce.plain(entries), lines, charts


__all__ = ["HEADLINES", "RECIPES", "RECORDS", "add_commands", "add_tables", "models", "site"]
