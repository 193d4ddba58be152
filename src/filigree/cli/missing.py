"""Commands of a package that may be absent: one line says how to get it."""

from __future__ import annotations

from collections.abc import Callable

import typer

PAPERS = ("reproduce", "counts")


def add_missing(app: typer.Typer) -> None:
    """Add a hidden command for each command of filigree-papers that no installed extension has added."""
    present = {command.name for command in app.registered_commands}
    for name in PAPERS:
        if name not in present:
            options = {"ignore_unknown_options": True, "allow_extra_args": True}
            app.command(name, hidden=True, context_settings=options)(_absent(name))


def _absent(name: str) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        raise ModuleNotFoundError(
            f"{name}: the papers' experiments are a package of their own, filigree-papers. From a checkout of "
            "filigree: pip install ./papers"
        )

    return command
