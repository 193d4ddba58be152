"""The compiled kernels, loaded after torch: their OpenMP symbols come from torch's own runtime.

The environment variable FILIGREE_ISA names an instruction set to use in place of the processor's best: "portable",
"avx2", "avx512" or "neon"; FILIGREE_AMX=0 leaves AMX out, which some processors with AVX-512 have. Where no kernels
could be built or loaded, or FILIGREE_KERNELS is "none", all operations are plain torch (`compiled` is False): the same
results, slowly, as a warning says once.
"""

import contextlib
import ctypes
import importlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch  # its OpenMP runtime must be in the process first


def _share_openmp() -> None:
    """Let the kernels see the OpenMP runtime that torch has loaded: its own, as in its wheels (on x86-64 Linux they do
    so themselves), or the system's, as where torch is a package of Debian or of conda."""
    folder = Path(torch.__file__).parent
    own = [str(path) for kind in ("libgomp*", "libomp*", "libiomp5*") for path in folder.glob(f"lib/{kind}")]
    for runtime in own or ("libgomp.so.1", "libomp.so.5", "libomp.so", "libiomp5.so"):
        with contextlib.suppress(OSError):  # there, but not in use
            ctypes.CDLL(runtime, mode=os.RTLD_GLOBAL | os.RTLD_NOLOAD)


class NoKernels:
    """What stands where the compiled kernels are not there: it answers for the processor, and computes nothing."""

    def isa(self) -> str:
        return "none"

    def isas(self) -> list[str]:
        return ["none"]

    def uses_amx(self) -> bool:
        return False

    def flush_denormals(self, wanted: bool) -> None:
        torch.set_flush_denormal(wanted)

    def advise_huge_pages(self, address: int, size: int) -> None:
        pass


def _without(reason: str) -> NoKernels:
    warnings.warn(
        f"filigree runs without its compiled kernels: {reason}. All of it is plain torch then, and sparse layers are "
        "slower than dense ones; docs/machines.md says how to build the kernels.",
        stacklevel=2,
    )
    return NoKernels()


_share_openmp()
kernels: Any
if (which := os.environ.get("FILIGREE_KERNELS", "compiled")) not in ("compiled", "none"):
    raise ImportError(f"FILIGREE_KERNELS must be compiled or none. Got {which!r}.")
if which == "none":
    kernels = _without("FILIGREE_KERNELS is none")
else:
    try:
        kernels = importlib.import_module("filigree.ops._kernels")
    except ImportError as error:
        kernels = _without(f"they could not be loaded ({error})")
compiled = not isinstance(kernels, NoKernels)
if compiled and (wanted := os.environ.get("FILIGREE_ISA")):
    if wanted not in kernels.isas():
        raise ImportError(
            f"FILIGREE_ISA must be one of {', '.join(kernels.isas())}, what this processor has. Got {wanted!r}."
        )
    kernels.set_isa(wanted)
if compiled and os.environ.get("FILIGREE_AMX") == "0":
    kernels.set_amx(False)

__all__ = ["compiled", "kernels"]
