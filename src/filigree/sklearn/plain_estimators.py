"""Estimators as plain values and tensors, for a file without pickle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from filigree.config import Config, clipped

FITTED = ("_seed", "_built_by", "history_", "n_features_in_", "n_outputs_", "_several", "_target_names", "temperature_")
ARRAYS, SCALERS = ("classes_", "feature_names_in_"), ("scaler_", "target_scaler_")


def plain_estimator(estimator: Any) -> dict[str, Any]:
    """The parameters of a fitted estimator and what it learned, but for its network."""
    name = type(estimator).__name__
    fitted = {key: _plain(getattr(estimator, key), name, key) for key in FITTED if hasattr(estimator, key)}
    fitted |= {key: _array(getattr(estimator, key)) for key in ARRAYS if hasattr(estimator, key)}
    fitted |= {key: _scaler(getattr(estimator, key)) for key in SCALERS if hasattr(estimator, key)}
    parameters = {key: _plain(value, name, key) for key, value in estimator.get_params(deep=False).items()}
    return {"kind": name, "parameters": parameters, "fitted": fitted}


def parameter_of(plain: Any) -> Any:
    """The value of a parameter as it was before `plain_estimator`."""
    if isinstance(plain, dict) and set(plain) == {"config"}:
        return Config.from_dict(plain["config"])
    return plain


def array_of(plain: Any) -> Any:
    """Names or classes as the array that they were, or the list of arrays."""
    if isinstance(plain, list):
        return [array_of(each) for each in plain]
    dtype = np.dtype(plain["dtype"])
    if dtype.kind not in "biufUO":
        raise ValueError(f"names of type {clipped(plain['dtype'])}")
    return np.array(plain["values"], dtype=dtype)


def scaler_of(plain: dict[str, Any] | None) -> StandardScaler | None:
    """A fitted scaler of scikit-learn."""
    if plain is None:
        return None
    scaler = StandardScaler(with_mean=bool(plain["with_mean"]))
    for key in ("mean_", "var_", "scale_"):
        setattr(scaler, key, None if plain[key] is None else plain[key].numpy())
    count = plain["n_samples_seen_"].numpy()
    scaler.n_samples_seen_ = count if count.ndim else count[()]
    scaler.n_features_in_ = len(scaler.scale_)
    return scaler


def names_of_targets(y: Any) -> list[str]:
    """The names of y's columns, or of the one that it is, where a frame or a series has some."""
    names = list(getattr(y, "columns", [getattr(y, "name", None)]))
    return names if all(isinstance(name, str) and name for name in names) else []


def _plain(value: Any, estimator: str, name: str) -> Any:
    if isinstance(value, Config):
        return {"config": value.to_dict()}
    if isinstance(value, np.random.RandomState | np.random.Generator):
        return None  # the seed that was drawn from it is kept
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {_plain(key, estimator, name): _plain(each, estimator, name) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(each, estimator, name) for each in value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{estimator}.save: {name} must be a plain value or a config to be written. Got {clipped(value)}.")


def _array(values: Any) -> Any:
    if isinstance(values, list):
        return [_array(each) for each in values]
    return {"values": values.tolist(), "dtype": values.dtype.str if values.dtype.kind != "O" else "O"}


def _scaler(scaler: StandardScaler | None) -> dict[str, Any] | None:
    if scaler is None:
        return None
    parts = {key: getattr(scaler, key) for key in ("mean_", "var_", "scale_", "n_samples_seen_")}
    tensors = {key: None if part is None else torch.as_tensor(np.asarray(part)) for key, part in parts.items()}
    return {"with_mean": scaler.with_mean} | tensors
