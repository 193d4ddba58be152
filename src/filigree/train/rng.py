"""The global random generators: seeded together, captured and restored as plain data for checkpoints."""

from __future__ import annotations

import numbers
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of `random`, numpy and torch (all devices).

    Initial weights and dropout draw from torch's global generator, which `fit` leaves alone: call this before making
    the model for a run that is the same every time. Raises `TypeError` for a seed that is no whole number.
    """
    if not isinstance(seed, numbers.Integral):
        raise TypeError(f"seed_everything: seed must be a whole number. Got {seed!r}.")
    seed = int(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy generator is what other code may draw from
    torch.manual_seed(seed)


def capture() -> dict[str, Any]:
    """The state of the global generators as tensors and plain values."""
    version, words, gauss = random.getstate()
    # numpy's global generator, a Mersenne twister like Python's; int64 for its words, since not all of torch has uint32
    legacy: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002
    known = legacy["bit_generator"] == "MT19937"  # its generator can be exchanged; that one is then left alone
    return {
        "python": (version, torch.tensor(words), gauss),
        "numpy": _swap(legacy, np.ndarray, lambda key: torch.from_numpy(key.astype(np.int64))) if known else None,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore(state: dict[str, Any]) -> None:
    """Put the global generators back where `capture` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    if state["numpy"] is not None:
        inner = state["numpy"]["state"]
        if not 0 <= inner["pos"] <= inner["key"].numel() == 624:  # numpy would read beyond its words
            raise ValueError(
                f"the state of numpy's generator must be 624 words and a place in them. Got {inner['pos']}."
            )
        np.random.set_state(_swap(state["numpy"], torch.Tensor, lambda key: key.numpy().astype(np.uint32)))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _swap(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """`value` with what is of one kind in it changed."""
    if isinstance(value, dict):
        return {key: _swap(item, kind, change) for key, item in value.items()}
    return change(value) if isinstance(value, kind) else value
