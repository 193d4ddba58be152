"""The global random generators: seeded together, captured and restored as plain data for checkpoints."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of `random`, numpy and torch (all devices).

    Initial weights and dropout draw from torch's global generator, which `fit` leaves alone: call this before making
    the model for a run that is the same every time.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy generator is what other code may draw from
    torch.manual_seed(seed)


def capture() -> dict[str, Any]:
    """The state of the global generators as tensors and plain values."""
    version, words, gauss = random.getstate()
    legacy: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": _swap(legacy, np.ndarray, torch.from_numpy),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore(state: dict[str, Any]) -> None:
    """Put the global generators back where `capture` found them."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(_swap(state["numpy"], torch.Tensor, torch.Tensor.numpy))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _swap(value: Any, kind: type, change: Any) -> Any:
    """`value` with its arrays of one kind changed into the other."""
    if isinstance(value, dict):
        return {key: _swap(item, kind, change) for key, item in value.items()}
    return change(value) if isinstance(value, kind) else value
