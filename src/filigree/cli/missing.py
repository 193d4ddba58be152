"""Commands of packages that may be absent: one line that says how to get them."""

from __future__ import annotations

import typer

PAPERS = ("reproduce", "counts")


def add_missing(app: typer.Typer, present: set[str | None]) -> None:
    """A hidden command for each of the papers' that no installed extension has brought."""
    for name in PAPERS:
        if name not in present:
            options = {"ignore_unknown_options": True, "allow_extra_args": True}
            app.command(name, hidden=True, context_settings=options)(_absent(name))


def _absent(name: str):  # type: ignore[no-untyped-def]
    def command(context: typer.Context) -> None:
        raise ModuleNotFoundError(
            f"{name}: the papers' experiments are a package of their own, filigree-papers. From a checkout of "
            "filigree: pip install ./papers"
        )

    return command
