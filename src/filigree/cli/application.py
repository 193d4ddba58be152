"""The command line: `filigree --help`. A command is a file; this one puts them together."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from typing import Annotated

import typer

from filigree.cli.exits import State, run
from filigree.cli.missing import add_missing
from filigree.extensions import add_commands
from filigree.optional import DISTRIBUTION

HELP = """filigree: neural networks that cost what they use.

Begin with `filigree demo`; `filigree list` shows the experiments; `filigree train RECIPE` runs one. Errors are one
line; exit code 2 means that the command was misspelt, 1 that something else went wrong."""


def _version(requested: bool) -> None:
    if requested:
        print(importlib.metadata.version(DISTRIBUTION))
        raise typer.Exit


def main_options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    State.debug = debug
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


COMMANDS = {  # in the order of the help: where each is
    "demo": "demo.demo",
    "list": "list_command.list_",
    "train": "train.train",
    "sweep": "sweep.sweep",
    "predict": "predict.predict",
    "generate": "generate.generate",
    "show": "show.show",
    "compress": "compress.compress",
    "advise": "advise.advise_",
    "shrink": "shrink.shrink_",
    "export": "export.export_",
    "compare": "compare.compare",
    "report": "report.report",
    "analyze": "analyze.analyze_",
    "doctor": "doctor.doctor",
}


def build() -> typer.Typer:
    """The command line with the commands of the library and of all installed extensions."""
    app = library()
    add_commands(app)
    add_missing(app)
    return app


def library(only: str | None = None) -> typer.Typer:
    """The command line with the library's commands, or with one of them: what others import is not loaded."""
    app = typer.Typer(
        help=HELP,
        invoke_without_command=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.callback()(main_options)
    for name, place in COMMANDS.items():
        if only in (None, name):
            file, _, function = place.partition(".")
            app.command(name)(getattr(importlib.import_module(f"filigree.cli.{file}"), function))
    return app


def main() -> None:
    """Run the command line and exit."""
    word = next((word for word in sys.argv[1:] if word not in ("--debug", "--version")), None)
    run(lambda: library(word) if word in COMMANDS else build())
