"""What other installed packages add to filigree: recipes, networks, data, commands and pages of the report.

A package adds itself by an entry point of the group `filigree.extensions` that names a module. All of the module's
attributes named here are optional; importing it registers networks (`filigree.models.builder`).

    RECIPES: a folder of recipes (`importlib.resources.files(...)`).
    add_commands(app): adds commands to the command line (a `typer.Typer`). `filigree --help` is quick where a file
        commands.json beside the package's code describes them: make it empty, then `python -m filigree_launcher`.
    add_tables(): returns tables for `filigree list`, rich's.
    RECORDS: folders with records that `filigree report` shows beside those of `runs`.
    HEADLINES: the claims that the report opens with, see `filigree.report.opening.claims`.
    site(folders): returns entries, lines to print and charts for the pages that `filigree report` writes.

`import filigree` loads no extension. The command line does, and so does an unknown name of a recipe or a network.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from types import ModuleType
from typing import Any

from filigree.config import one_line

GROUP = "filigree.extensions"


@functools.cache
def extensions() -> tuple[ModuleType, ...]:
    """The extension modules of all installed packages, imported at the first call, in the order of their names.

    One that cannot be imported is left out, and a line on stderr (the log `filigree.extensions`) names its package.
    """
    points = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    modules = []
    for _, point in sorted(points.items()):
        try:
            modules.append(point.load())
        except Exception as error:
            _leave_out(point.dist.name if point.dist else point.module, error)
    return tuple(modules)


def add_commands(app: Any) -> None:
    """Add the commands of all extensions to the command line; those of one that fails are left out, with a line."""
    for extension in extensions():
        if hasattr(extension, "add_commands"):
            try:
                extension.add_commands(app)
            except Exception as error:
                _leave_out(extension.__name__, error)


def _leave_out(package: str, error: Exception) -> None:
    reason = one_line(f"{type(error).__name__}: {error}")
    logging.getLogger(__name__).warning(f"filigree: the extension {package} cannot be loaded and is left out: {reason}")
