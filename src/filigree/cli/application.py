"""The command line: `filigree --help`. A command is a file; this one puts them together."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from filigree.cli import (
    analyze,
    compare,
    compress,
    demo,
    export,
    generate,
    list_command,
    predict,
    report,
    show,
    shrink,
    sweep,
    train,
)
from filigree.cli.exits import State, run
from filigree.cli.missing import add_missing
from filigree.extensions import add_commands

HELP = """filigree: neural networks that cost what they use.

Begin with `filigree demo`; `filigree list` shows the experiments; `filigree train RECIPE` runs one. Errors are one
line; exit code 2 means that the command was misspelt, 1 that something else went wrong."""


def _version(requested: bool) -> None:
    if requested:
        print(importlib.metadata.version("filigree"))
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


def build() -> typer.Typer:
    """The command line with the commands of the library and of all installed extensions."""
    app = typer.Typer(
        help=HELP,
        invoke_without_command=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    app.callback()(main_options)
    app.command("demo")(demo.demo)
    app.command("list")(list_command.list_)
    app.command("train")(train.train)
    app.command("sweep")(sweep.sweep)
    app.command("predict")(predict.predict)
    app.command("generate")(generate.generate)
    app.command("show")(show.show)
    app.command("compress")(compress.compress)
    app.command("shrink")(shrink.shrink_)
    app.command("export")(export.export_)
    app.command("compare")(compare.compare)
    app.command("report")(report.report)
    app.command("analyze")(analyze.analyze_)
    add_commands(app)
    add_missing(app)
    return app


def main() -> None:
    """Run the command line and exit."""
    run(build())
