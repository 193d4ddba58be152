"""Numbers too small for their type's exponent, which slow a processor down a hundredfold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from filigree.ops import kernels


@contextmanager
def without_denormals() -> Iterator[None]:
    """Take them for zero meanwhile; afterwards as before (`torch.set_flush_denormal`), in this thread.

    Momentum of dead connections decays into them, and a memorised batch has gradients of 1e-39.
    """
    before = bool(torch.tensor(1e-310, dtype=torch.float64) * 1 == 0)
    kernels.flush_denormals(True)
    try:
        yield
    finally:
        kernels.flush_denormals(before)
