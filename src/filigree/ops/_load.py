"""The compiled kernels, loaded after torch: their OpenMP symbols come from torch's own runtime.

The environment variable FILIGREE_ISA names an instruction set to use in place of the processor's best: "portable",
"avx2" or "avx512".
"""

import os

import torch  # noqa: F401  (its OpenMP runtime must be in the process first)

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
