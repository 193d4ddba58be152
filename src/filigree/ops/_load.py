"""The compiled kernels, loaded after torch: their OpenMP symbols come from torch's own runtime.

The environment variable FILIGREE_ISA names an instruction set to use in place of the processor's best: "portable",
"avx2", "avx512" or "neon".
"""

import contextlib
import ctypes
import os
from pathlib import Path

import torch  # its OpenMP runtime must be in the process first


def _share_openmp() -> None:
    """Let the kernels see the OpenMP runtime that torch has loaded. On x86-64 Linux torch does so itself."""
    folder = Path(torch.__file__).parent
    for runtime in (path for kind in ("libgomp*", "libomp*", "libiomp5*") for path in folder.glob(f"lib/{kind}")):
        with contextlib.suppress(OSError):  # there, but not in use
            ctypes.CDLL(str(runtime), mode=os.RTLD_GLOBAL | os.RTLD_NOLOAD)


_share_openmp()
try:
    from filigree.ops import _kernels as kernels  # type: ignore[attr-defined]
except ImportError as error:
    raise ImportError(
        f"filigree: the compiled kernels could not be loaded ({error}). Build them with `pip install .`; "
        "they take OpenMP from torch, so torch must be a build with OpenMP."
    ) from error

if wanted := os.environ.get("FILIGREE_ISA"):
    if wanted not in kernels.isas():
        raise ImportError(
            f"FILIGREE_ISA must be one of {', '.join(kernels.isas())}, what this processor has. Got {wanted!r}."
        )
    kernels.set_isa(wanted)

__all__ = ["kernels"]
