"""The products of `reference.cpp`, compiled for the instruction set in use by the compiler at hand.

`FILIGREE_ISA=avx2` compares with AVX2's intrinsics. The library leaves OpenMP's symbols open, as the package does: they
come from the runtime that torch has loaded, so that both run on one pool of threads.
"""

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from filigree.ops import kernels

FLAGS = {"avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma", "avx2": "-mavx2 -mfma", "neon": ""}
AHEAD = (0, 4, 8)  # nonzeros between a prefetch and its use; 0: none


def build(folder):
    """The compiled library; the calling test is skipped where there is no compiler or no reference."""
    isa = "neon" if platform.machine() in ("aarch64", "arm64") else kernels.isa()
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if isa not in FLAGS:
        pytest.skip(f"reference.cpp has no intrinsics for '{isa}'")
    if compiler is None:
        pytest.skip("no C++ compiler: reference.cpp cannot be compiled")
    source, compiled = Path(__file__).with_name("reference.cpp"), Path(folder) / "reference.o"
    options = ["-O3", "-std=c++17", "-fopenmp", "-fPIC", *FLAGS[isa].split()]
    subprocess.run([compiler, *options, "-c", source, "-o", compiled], check=True)
    undefined = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
    subprocess.run([compiler, "-shared", *undefined, compiled, "-o", compiled.with_suffix(".so")], check=True)
    return ctypes.CDLL(str(compiled.with_suffix(".so")))


def contestants(library, layer, x, dy):
    """The reference's variants of a layer's products on feature-major x and dy, without bias and ReLU.

    Returns:
        For "forward" and "backward" the calls by name and the tensors that they write.
    """
    p, values = layer.pattern, layer.values.detach()
    y, dx, dvalues, ordered = (
        torch.empty_like(dy),
        torch.empty_like(x),
        torch.empty_like(values),
        torch.empty_like(values),
    )

    def call(name, *arguments):
        plain = [
            ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else None if a is None else ctypes.c_int64(a)
            for a in arguments
        ]
        function = getattr(library, name)
        held = arguments  # addresses outlive nothing
        return lambda ahead: (function(ctypes.c_int(ahead), *plain), held)[0]

    multiply = call("multiply", p.rows, p.indptr, p.indices, None, values, x, y)
    transposed = call("multiply", p.cols, p.t_indptr, p.t_indices, p.t_perm, values, dy, dx)
    sddmm = call("sddmm", p.rows, p.indptr, p.indices, dy, x, dvalues)
    fused = call(
        "fused", p.cols, p.nnz, p.t_indptr, p.t_indices, p.t_perm, p.t_place, values, x, dy, dx, ordered, dvalues
    )
    forward = {f"ahead {a}": lambda a=a: multiply(a) for a in AHEAD}
    backward = {f"fused, ahead {a}": lambda a=a: fused(a) for a in AHEAD}
    backward |= {f"apart, ahead {a}": lambda a=a: (transposed(a), sddmm(a)) for a in AHEAD}
    return {"forward": (forward, [y]), "backward": (backward, [dx, dvalues])}
