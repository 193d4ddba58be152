"""The commands of a `typer.Typer` as plain values: what help needs to know of them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import types
import typing
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import typer

FILE = "commands.json"
KINDS = {kind.__name__: kind for kind in (str, int, float, bool, Path)}


def describe(app: typer.Typer) -> dict[str, Any]:
    """Help, options and commands of an application; hidden commands are left out."""
    main = app.registered_callback
    commands = [command for command in app.registered_commands if not command.hidden]
    return {
        "help": app.info.help if isinstance(app.info.help, str) else "",
        "options": _parameters(main.callback) if main is not None and main.callback else [],
        "commands": [
            {
                "name": command.name,
                "help": inspect.getdoc(command.callback) or "",
                "parameters": _parameters(command.callback),
            }
            for command in commands
        ],
    }


def write_all() -> Iterator[Path]:
    """Write the description of the library, and of each installed extension that has one, beside their code."""
    library = importlib.import_module("filigree.cli.application").library()
    yield _write(folder_of("filigree_launcher"), describe(library))
    for point in entry_points(group="filigree.extensions"):
        if (folder_of(point.module) / FILE).exists():
            app = typer.Typer()
            point.load().add_commands(app)
            yield _write(folder_of(point.module), describe(app))


def folder_of(module: str) -> Path:
    """Where a module's package lies, without importing it."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    return Path(spec.origin or "").parent if spec is not None else Path()


def text_of(description: dict[str, Any]) -> str:
    return json.dumps(description, indent=1, ensure_ascii=False) + "\n"


def _write(folder: Path, description: dict[str, Any]) -> Path:
    (folder / FILE).write_text(text_of(description))
    return folder / FILE


def _parameters(function: Any) -> list[dict[str, Any]]:
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        hint, info = hints[name], None
        if typing.get_origin(hint) is typing.Annotated:
            hint, info = typing.get_args(hint)
        if inspect.isclass(hint) and issubclass(hint, typer.Context):
            continue
        kind, many = _kind(hint)
        required = parameter.default is inspect.Parameter.empty
        argument = isinstance(info, typer.models.ArgumentInfo) or (info is None and required)
        plain = typer.Argument() if argument else typer.Option()
        options = {} if info is None else {
            key: value for key, value in vars(info).items()
            if key not in ("default", "param_decls") and value != getattr(plain, key) and _is_plain(value)
        }  # fmt: skip
        if info is not None and isinstance(info.default, str):  # in Annotated the first name takes that argument
            options["param_decls"] = [info.default, *(info.param_decls or ())]
        parameters.append(
            {"name": name, "kind": kind, "many": many, "argument": argument, "info": options}
            | ({} if required else {"default": _value(parameter.default)})
        )
    return parameters


def _kind(hint: Any) -> tuple[str | list[str], bool]:
    """The name of a parameter's type, or the words that it may be, and whether it may be given several times."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is list:
        return _kind(typing.get_args(hint)[0])[0], True
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint)), False
    if hint.__name__ not in KINDS:
        raise TypeError(f"the launcher's help knows parameters of {', '.join(KINDS)} and literals. Got {hint}.")
    return hint.__name__, False


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int | float)


def _value(default: Any) -> Any:
    return str(default) if isinstance(default, Path) else list(default) if isinstance(default, tuple) else default
