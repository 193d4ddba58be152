"""The compiled kernels, loaded after torch: their OpenMP symbols come from torch's own runtime."""

import torch  # noqa: F401  (its OpenMP runtime must be in the process first)

try:
    from filigree.ops import _kernels as kernels  # type: ignore[attr-defined]
except ImportError as error:
    raise ImportError(
        f"filigree: the compiled kernels could not be loaded ({error}). Build them with `pip install .`; "
        "they take OpenMP from torch, so torch must be a build with OpenMP."
    ) from error

__all__ = ["kernels"]
