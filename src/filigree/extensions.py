"""What other installed packages add to filigree: recipes, networks, data, commands and pages of the report.

A package adds itself by an entry point of the group `filigree.extensions` that names a module. All of the module's
attributes named here are optional; importing it registers networks (`filigree.models.builder`).

    RECIPES: a folder of recipes (`importlib.resources.files(...)`).
    add_commands(app): adds commands to the command line (a `typer.Typer`).
    add_tables(): tables for `filigree list`, rich's.
    RECORDS: folders with records that `filigree report` shows beside those of `runs`.
    site(folders): entries, lines to print and charts for the pages that `filigree report` writes.
"""

from __future__ import annotations

import functools
import importlib.metadata
from types import ModuleType

GROUP = "filigree.extensions"


@functools.cache
def extensions() -> tuple[ModuleType, ...]:
    """The extension modules of all installed packages, imported at the first call, in the order of their names."""
    points = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    return tuple(points[name].load() for name in sorted(points))
