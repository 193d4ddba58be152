"""Networks of other people's, as commands take them: a file of filigree's or of torch's, or a function in a module."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from filigree.cli.trained import load_trained
from filigree.config import one_line
from filigree.io.programs import module_of
from filigree.recipes import RecipeError

PYTHON = "python:"


def network_of(source: str) -> nn.Module:
    """A network in evaluation mode.

    Args:
        source: a file that `fg.save` or `filigree train` wrote, or the folder of a run; a program of `torch.export` or
            `torch.jit` (.pt2, .pt, .pth, .ts), as a module; or "python:package.module:factory", the module that a
            function without arguments returns, also of a file in the present folder.

    Raises:
        RecipeError: there is none, by one line.
    """
    if source.startswith(PYTHON):
        return _from_factory(source)
    path = Path(source)
    if not path.exists():
        raise RecipeError(f"{source}: there is no such file.")
    if path.suffix == ".pt2":
        return _program(path)
    if path.suffix in (".pt", ".pth", ".ts"):
        return _script(path)
    return load_trained(path)


def from_python(source: str) -> Any:
    """What "python:MODULE:NAME" names, a module of the present folder included."""
    module_name, _, name = source.removeprefix(PYTHON).partition(":")
    if not module_name or not name:
        raise RecipeError(f"{source}: write python:MODULE:NAME, such as python:mypackage.models:build.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        value: Any = importlib.import_module(module_name)
        for part in name.split("."):
            value = getattr(value, part)
        return value
    except Exception as error:  # whatever a user's own code does
        raise RecipeError(f"{source}: {type(error).__name__}: {one_line(error)}") from error
    finally:
        sys.path.pop(0)


def called(source: str) -> Any:
    """What the function that "python:MODULE:NAME" names returns."""
    function = from_python(source)
    try:
        return function()
    except Exception as error:
        raise RecipeError(f"{source}: {type(error).__name__}: {one_line(error)}") from error


def _from_factory(source: str) -> nn.Module:
    value = from_python(source)
    network = value if isinstance(value, nn.Module) else called(source)
    if not isinstance(network, nn.Module):
        raise RecipeError(f"{source}: a torch module is needed. Got a {type(network).__name__}.")
    return network.eval()


def _program(path: Path) -> nn.Module:
    try:
        return module_of(torch.export.load(path))
    except Exception as error:
        raise RecipeError(f"{path}: not a program of torch.export: {one_line(error)}") from error


def _script(path: Path) -> nn.Module:
    try:
        kind = torch.jit.load(path, map_location="cpu")
    except Exception as error:
        raise RecipeError(
            f"{path}: not a program of torch.jit. A file of weights alone says nothing of the "
            "network: name a function that builds it and loads them, python:MODULE:FACTORY."
        ) from error
    raise RecipeError(
        f"{path}: a torch.jit program of {kind.original_name}, whose layers are compiled and cannot be changed. Name "
        "the function that builds it, python:MODULE:FACTORY, or save it by torch.export.save as a .pt2."
    )
