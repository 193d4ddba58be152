"""Networks and data of other people's, as commands take them: files of filigree's or torch's, functions in a module."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filigree.cli.trained import as_weights, load_samples, load_trained, run_of
from filigree.config import one_line
from filigree.io.programs import module_of
from filigree.recipes import RecipeError

PYTHON = "python:"
_ARRAYS = (".npy", ".npz", ".pt")


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
    """What "python:MODULE:NAME" names, a module of the present folder included; so are those that it imports later,
    when it is called."""
    module_name, _, name = source.removeprefix(PYTHON).partition(":")
    if not module_name or not name:
        raise RecipeError(f"{source}: write python:MODULE:NAME, such as python:mypackage.models:build.")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        value: Any = importlib.import_module(module_name)
        for part in name.split("."):
            value = getattr(value, part)
        return value
    except Exception as error:  # whatever a user's own code does
        raise RecipeError(f"{source}: {type(error).__name__}: {one_line(error)}") from error


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


def data_for(network: nn.Module, command: str, model: str, source: str, seed: int, options: dict[str, Any]) -> Any:
    """What `fg.shrink` takes as data: of a data set's name or file the training part; arrays of a .npy, .npz or .pt;
    or what a function returns, "python:MODULE:FUNCTION". `options` as of `load_samples`."""
    if (own := own_data(network, source)) is not None:
        return own
    trained_by = None if model.startswith(PYTHON) else run_of(Path(model), source)
    split = load_samples(network, source, f"{command} {model}", seed, trained_by, **options)
    return split.train.x, split.train.y


def own_data(network: nn.Module, source: str) -> Any:
    """What a function returns, or inputs, and targets if there are any, of a file of arrays; None: it is neither."""
    if source.startswith(PYTHON):
        return called(source)
    path = Path(source)
    if path.suffix not in _ARRAYS or not path.is_file() or (tensors := _tensors(path)) is None:
        return None
    x, y = tensors
    return as_weights(network, x) if y is None else (as_weights(network, x), y)


def inputs_for(network: nn.Module, source: str) -> Tensor | None:
    """The inputs that a function returns or that are in a file of arrays; None: it is neither."""
    own = own_data(network, source)
    x = own[0] if isinstance(own, tuple | list) and own else own
    if own is not None and not isinstance(x, Tensor):
        raise RecipeError(f"--data {source}: inputs, or (inputs, targets), are needed. Got a {type(own).__name__}.")
    return None if x is None else as_weights(network, x)  # of a file they are so already


def _tensors(path: Path) -> tuple[Tensor, Tensor | None] | None:
    """Inputs and targets of a file of plain arrays; None of another kind of file."""
    try:
        if path.suffix == ".pt":
            stored = torch.load(path, weights_only=True)
        else:
            arrays = np.load(path, allow_pickle=False)
            stored = arrays if isinstance(arrays, np.ndarray) else dict(arrays)
    except Exception as error:
        raise RecipeError(f"--data {path}: {one_line(error)}") from error
    if isinstance(stored, dict):
        if "x" not in stored:
            return None
        x, y = stored["x"], stored.get("y")
    elif isinstance(stored, tuple | list) and len(stored) == 2:
        x, y = stored
    else:
        x, y = stored, None
    return _tensor(path, "x", x), None if y is None else _tensor(path, "y", y)


def _tensor(path: Path, name: str, values: Any) -> Tensor:
    """Numbers as a tensor, also those that another machine wrote in its order of bytes."""
    if isinstance(values, np.ndarray):
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        kind = values.dtype if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
        raise RecipeError(f"--data {path}: {name} must hold numbers. Got {kind}.") from None
