"""Help from stored descriptions of the commands: typer lays it out, as it does that of the commands themselves."""

from __future__ import annotations

import inspect
import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from filigree_launcher.describe import FILE, KINDS, folder_of


def show(words: list[str], extensions: list[EntryPoint]) -> None:
    """Show the help that these arguments ask for, and exit. Returns where it is not stored: of a command that is not
    known, or with an extension that does not bring a description."""
    files = [folder_of("filigree_launcher") / FILE]
    files += [folder_of(point.module) / FILE for point in sorted(extensions, key=lambda point: point.name)]
    if not all(file.is_file() for file in files):
        return
    described = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    app = application(described)
    if words and words != ["--help"] and words[0] not in {command.name for command in app.registered_commands}:
        return
    app(words or ["--help"], standalone_mode=False)
    sys.exit(0 if words else 2)


def application(described: list[dict[str, Any]]) -> typer.Typer:
    """A command line with the commands of these descriptions that can only show its help."""
    app = typer.Typer(
        help=described[0]["help"], invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )  # fmt: skip
    app.callback()(_function("", described[0]["options"]))
    for command in (command for each in described for command in each["commands"]):
        app.command(command["name"])(_function(command["help"], command["parameters"]))
    return app


def _function(text: str, parameters: list[dict[str, Any]]) -> Any:
    """A function that does nothing, with the parameters that typer shows."""

    def command(**_: Any) -> None:
        return None

    signature = []
    for one in parameters:
        kind: Any = KINDS[one["kind"]] if isinstance(one["kind"], str) else Literal[tuple(one["kind"])]
        make: Any = typer.Argument if one["argument"] else typer.Option
        options = dict(one["info"])
        info = make(*options.pop("param_decls", None) or (), **options)
        has_default = "default" in one
        value: Any = one.get("default", inspect.Parameter.empty)
        if isinstance(value, str) and kind is Path:
            value = Path(value)
        hint: Any = list[kind] if one["many"] else kind
        if has_default and value is None:
            hint = hint | None
        signature.append(
            inspect.Parameter(
                one["name"], inspect.Parameter.KEYWORD_ONLY, default=value, annotation=Annotated[hint, info]
            )
        )
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    command.__doc__ = text
    return command
