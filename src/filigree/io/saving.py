"""`save` and `load`: a model with its conversions in one safetensors file, no pickle."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from filigree import models
from filigree.config import Config, clipped, one_line
from filigree.convert import Conversion, conversions, record
from filigree.data.preprocessing import Preprocessing, preprocessing_of, set_preprocessing
from filigree.data.vocabulary import Vocabulary, set_vocabulary, vocabulary_of
from filigree.io.load_limits import LoadLimits, check_numbers
from filigree.io.storage import Stored, read, read_state, write_state
from filigree.io.tensors import memory_order, order_, tie_, untie_
from filigree.models.networks import modules_of
from filigree.nn.sparse.sharded_linear import ShardedLinear
from filigree.nn.sparse.sharding import divide_, shards_in
from filigree.nn.sparse.sparse import Sparse
from filigree.optional import needed
from filigree.preserved import Preserved
from filigree.rollback import AllOrNothing
from filigree.untrained import warn_if_untrained
from filigree.wrappers import check_module, names_in, unwrapped

_ESTIMATORS = "filigree.sklearn.stored"  # the module that reads them, loaded when one comes


def save(model: nn.Module, path: str | Path) -> None:
    """Write `model` to one safetensors file: its `state_dict` (topologies included) and how it was converted.

    The file is about as large as its values and indices, and takes the place of an older one only when it is whole.
    Of a compiled model, or one in `DataParallel` or `DistributedDataParallel`, the model inside is written. The model's
    attributes `preprocessing` (`fg.data.Preprocessing`) and `vocabulary` (`fg.data.Vocabulary`) go along.

    Of a model whose layers are divided over processes (`fg.shard_`) all of them call this together. The first one
    writes the file of the whole model, and gets the others' rows 64 MiB at a time.

    Raises:
        TypeError: a conversion that cannot be written as plain data.
        OSError: the file cannot be written, in every process; what was there before is intact.
    """
    check_module(model, "save")
    warn_if_untrained(model, "save")
    shards = shards_in(model)
    try:
        write_state(path, description(model, whole=True), writes=shards is None or shards.rank == 0)
    except Exception as error:
        if shards is not None:
            shards.objects(error)
        raise
    if shards is not None and (errors := [error for error in shards.objects(None) if error is not None]):
        raise errors[0]


def load(path: str | Path, into: nn.Module | None = None, *, sharded: bool = False) -> Any:
    """Read a model that `save` wrote; its outputs are the same bit for bit. Of a file that an estimator of `fg.sklearn`
    wrote, it is that estimator.

    Args:
        path: the file.
        into: a fresh, unconverted instance of your own class, to which the stored conversions are applied. Networks of
            `fg.models` rebuild by themselves.
        sharded: divide sparse linear layers over the processes, as `fg.shard_` does; each reads its rows only.

    Raises:
        FileNotFoundError, ValueError: no such file; not such a file; a model that it does not fit; a model far larger
            than the file. One line each; `into` is then as it was, of which there is a copy in memory meanwhile.

    The file is untrusted: nothing in it is run, indices are checked before a kernel reads them, and no more memory is
    taken than is in proportion to the file (`filigree.io.load_limits`).
    """
    stored = read_state(path, lazily=sharded)
    if into is not None:
        check_module(into, "load: into")
    model = _rebuilt(path, stored, into, sharded)
    if into is None and "estimator" in stored:
        reader = needed(_ESTIMATORS, f"load: {path} holds an estimator, and reading it", "sklearn")
        return reader.estimator_of(path, model, stored["estimator"])
    return model


def load_network(path: str | Path) -> nn.Module:
    """The network of a file that `save` or an estimator wrote; raises as `load` does."""
    return _rebuilt(path, read_state(path), None)


def _rebuilt(path: str | Path, stored: Any, into: nn.Module | None, sharded: bool = False) -> nn.Module:
    if not isinstance(stored, dict) or not {"model", "conversions", "state_dict"} <= set(stored):
        raise ValueError(f"load: {path} does not hold a model (it was not written by fg.save).")
    made_by, steps, state = read(stored["model"]), read(stored["conversions"]), stored["state_dict"]
    stored |= {key: read(value) for key, value in stored.items() if key != "state_dict"}
    if into is None and made_by is None:
        raise ValueError(
            f"load: {path} holds a model of your own class. Give a fresh instance: fg.load(path, into=...)."
        )
    if into is not None and conversions(into):
        raise ValueError("load: into must be a fresh, unconverted instance. Got one that was converted already.")
    try:
        check_numbers([made_by, steps], path)
        undone = AllOrNothing(into, values=True) if into is not None else nullcontext()
        with LoadLimits(path, len(state)), undone:
            if into is not None:
                model = unwrapped(into)
            else:
                with torch.device("meta"):  # no dense weight is ever allocated
                    model = models.build(**made_by)
            for plain, names in steps:
                config = Config.from_dict(plain)
                if sharded and isinstance(config, Sparse) and not config.masked:
                    config = replace(config, sharded=True)
                _convert_again(model, config, list(names))
            if sharded:
                divide_(model)
            state = read(_own_rows(model, state))
            _fit_names(model, state)
            _fit_types(model, state, into is not None)
            untie_(model, state)
            model.load_state_dict(state, assign=into is None)
            tie_(model, state)
            order_(model, stored.get("memory_orders", {}))
            if (plain := stored.get("preprocessing")) is not None:
                set_preprocessing(model, Preprocessing(**plain))
            if (plain := stored.get("vocabulary")) is not None:
                set_vocabulary(model, Vocabulary(**plain))
    except Exception as error:  # a hostile file can fail in any way; whoever reads it needs one kind of error
        reason = one_line(error, 300)
        raise ValueError(f"load: {path} does not fit {_name(into, made_by)}: {reason}") from None
    return model if into is None else into


def _own_rows(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """The stored state with the rows of this process of each sharded layer."""
    for name, layer in model.named_modules():
        if isinstance(layer, ShardedLinear):
            prefix = f"{name}." if name else ""
            rest = dict(state)
            whole = {
                key: rest.pop(prefix + key) for key in ("indptr", "indices", "values", "bias") if prefix + key in rest
            }
            if not all(isinstance(tensor, Tensor | Stored) for tensor in whole.values()):
                raise ValueError(f"the numbers of {name!r} should be tensors.")
            state = rest | {f"{prefix}own.{key}": tensor for key, tensor in layer.own_state(whole).items()}
    return state


def description(model: nn.Module, whole: bool = False) -> dict[str, Any]:
    """All of a model as plain data and tensors: what `save` writes.

    Args:
        whole: with all rows of layers that are divided over processes, which then call this together.
    """
    model, within = unwrapped(model), names_in(model)
    made_by = model.__dict__.get("_filigree_model")
    state = {within(name): value for name, value in model.state_dict().items()}
    for name, layer in model.named_modules() if whole else ():
        if isinstance(layer, ShardedLinear):
            prefix = f"{within(name)}." if name else ""
            state = {key: value for key, value in state.items() if not key.startswith(f"{prefix}own.")}
            state |= {prefix + key: tensor for key, tensor in layer.stored_state().items()}
    orders = {name: order for name, value in state.items() if (order := memory_order(value))}
    return {
        "model": made_by if made_by is None or _is_as_made(model) else None,
        "conversions": [
            [(config.stored() if isinstance(config, Conversion) else config).to_dict(), list(names)]
            for config, names in conversions(model)
        ],
        "state_dict": state,
        "memory_orders": orders,
        "preprocessing": None if (own := preprocessing_of(model)) is None else own.to_dict(),
    } | ({} if (tokens := vocabulary_of(model)) is None else {"vocabulary": tokens.to_dict()})


def _is_as_made(model: nn.Module) -> bool:
    """Whether a network of `fg.models` is what its builder and the conversions made of it, as far as modules go. One
    that was changed by hand cannot be rebuilt, and is saved as one of a user's own."""
    converted = {name for _, names in conversions(model) for name in names}
    now = modules_of(model)
    own = {name for name, (home, _, _) in now.items() if converted and home.startswith("filigree.nn")}

    def is_inside(name: str, some: set[str]) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:i]) in some for i in range(1, len(parts) + 1))

    before = model.__dict__.get("_filigree_modules", now)
    for name in before.keys() | now.keys():
        if is_inside(name, converted) or is_inside(name, own):
            continue
        if name not in before or name not in now:
            return False
        (_, kind, was), (_, now_kind, here) = before[name], now[name]
        if kind != now_kind:
            if now_kind != "Identity" or not converted:  # what a conversion folds into a layer
                return False
        elif "Dropout" not in kind and any(here.get(key) != value for key, value in was.items()):
            return False
    return True


def _convert_again(model: nn.Module, config: Config, names: list[str]) -> None:
    if not isinstance(config, Conversion):
        raise ValueError(f"{type(config).__name__} is not a conversion.")
    if len(set(names)) != len(names):
        raise ValueError(f"a {type(config).__name__} converts the same module twice.")
    for name in names:
        if not config.accepts(model.get_submodule(name)):
            raise ValueError(f"{name!r} is a {type(model.get_submodule(name)).__name__}, not what was converted.")
    before = Preserved(model)
    config.apply(model, names)
    before.restore_(model)
    record(model, config, names)


def _fit_names(model: nn.Module, state: dict[str, Any]) -> None:
    missing = sorted(set(model.state_dict()) ^ set(state))
    if missing:
        raise ValueError(f"{missing[0]!r} is not in both the file and the model.")


def _fit_types(model: nn.Module, state: dict[str, Any], copied: bool) -> None:
    """Stored tensors become a model's own as they are: types that its code would read as others are refused, and, where
    they are `copied`, floating-point numbers of another type, which would give other outputs."""
    for name, own in model.state_dict().items():
        stored = state[name]
        if not isinstance(own, Tensor):
            continue
        if not isinstance(stored, Tensor) or _sort(stored) != _sort(own):
            raise ValueError(f"{name!r} should be a tensor like {own.dtype}. Got {getattr(stored, 'dtype', stored)!r}.")
        other = _sort(own) in ("float", "complex") and stored.dtype != own.dtype
        if copied and other and not name.endswith("_extra_state"):  # a level, in the module's own precision
            raise ValueError(f"{name!r} is {stored.dtype} in the file. Make `into` so first, its is {own.dtype}.")
    floats: dict[str, set[torch.dtype]] = {}
    for name, stored in state.items():
        own = not name.endswith("_extra_state")  # a level, in the module's own precision
        if own and isinstance(stored, Tensor) and stored.is_floating_point():
            floats.setdefault(name.rpartition(".")[0], set()).add(stored.dtype)
    if mixed := [name for name, types in floats.items() if len(types) > 1]:
        types = " and ".join(sorted(map(str, floats[mixed[0]])))
        raise ValueError(f"the numbers of {mixed[0]!r} should be of one type. Got {types}.")


def _sort(tensor: Tensor) -> str:
    if tensor.dtype is torch.bool:
        return "bool"
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"


def _name(into: nn.Module | None, made_by: Any) -> str:
    return type(into).__name__ if into is not None else clipped(made_by)
