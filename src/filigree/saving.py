"""`save` and `load`: a model with its conversions in one safetensors file, no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from filigree import models
from filigree.config import Config
from filigree.convert import Conversion, conversions, record
from filigree.storage import read_state, write_state


def save(model: nn.Module, path: str | Path) -> None:
    """Write `model` to one safetensors file: its `state_dict` (topologies included) and how it was converted.

    The file is about as large as its values and indices, and takes the place of an older one only when it is whole.

    Raises:
        TypeError: a conversion that cannot be written as plain data.
        OSError: the file cannot be written; what was there before is intact.
    """
    write_state(path, description(model))


def load(path: str | Path, into: nn.Module | None = None) -> nn.Module:
    """Read a model that `save` wrote; its outputs are the same bit for bit.

    Args:
        path: the file.
        into: a fresh, unconverted instance of your own class, to which the stored conversions are applied. Networks of
            `fg.models` rebuild by themselves.

    Raises:
        FileNotFoundError, ValueError: no such file; not such a file; a model that it does not fit. One line each.
    """
    stored = read_state(path)
    if not isinstance(stored, dict) or not {"model", "conversions", "state_dict"} <= set(stored):
        raise ValueError(f"load: {path} does not hold a model (it was not written by fg.save).")
    made_by, steps, state = stored["model"], stored["conversions"], stored["state_dict"]
    if into is None and made_by is None:
        raise ValueError(
            f"load: {path} holds a model of your own class. Give a fresh instance: fg.load(path, into=...)."
        )
    if into is not None and conversions(into):
        raise ValueError("load: into must be a fresh, unconverted instance. Got one that was converted already.")
    try:
        if into is not None:
            model = into
        else:
            with torch.device("meta"):  # no dense weight is ever allocated
                model = models.build(**made_by)
        for plain, names in steps:
            _convert_again(model, Config.from_dict(plain), list(names))
        _fit_shapes(model, state)
        model.load_state_dict(state, assign=into is None)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"load: {path} does not fit {_name(into, made_by)}: {reason[:300]}") from None
    return model


def description(model: nn.Module) -> dict[str, Any]:
    """All of a model as plain data and tensors: what `save` writes."""
    return {
        "model": model.__dict__.get("_filigree_model"),
        "conversions": [[config.to_dict(), list(names)] for config, names in conversions(model)],
        "state_dict": dict(model.state_dict()),
    }


def _convert_again(model: nn.Module, config: Config, names: list[str]) -> None:
    if not isinstance(config, Conversion):
        raise ValueError(f"{type(config).__name__} is not a conversion.")
    for name in names:
        if not config.accepts(model.get_submodule(name)):
            raise ValueError(f"{name!r} is a {type(model.get_submodule(name)).__name__}, not what was converted.")
    config.apply(model, names)
    record(model, config, names)


def _fit_shapes(model: nn.Module, state: dict[str, Any]) -> None:
    missing = sorted(set(model.state_dict()) ^ set(state))
    if missing:
        raise ValueError(f"{missing[0]!r} is not in both the file and the model.")


def _name(into: nn.Module | None, made_by: Any) -> str:
    return type(into).__name__ if into is not None else f"{made_by}"
