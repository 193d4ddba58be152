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


def _call(library, name, *arguments):
    """A call of one of its functions: addresses of tensors, null for None, int64 for other numbers."""
    plain = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor)
        else None if a is None else ctypes.c_int64(a) if isinstance(a, int) else a
        for a in arguments
    ]  # fmt: skip
    function, held = getattr(library, name), arguments  # addresses outlive nothing
    return lambda: (function(*plain), held)[0]


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
        return lambda ahead: _call(library, name, ctypes.c_int(ahead), *arguments)()

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


def rows(library, layer, chosen, x, dy):
    """The reference's products of chosen rows on feature-major x and dy, which holds those rows only.

    Returns:
        For "forward" and "backward" the calls by name and the tensors that they write.
    """
    p, values = layer.pattern, layer.values.detach()
    y, dx, dvalues = x.new_zeros(p.rows, x.shape[1]), torch.empty_like(x), torch.empty_like(values)
    forward = _call(library, "rows_multiply", len(chosen), chosen, p.indptr, p.indices, values, x, y)
    backward = _call(
        library, "rows_backward", len(chosen), chosen, p.cols, p.nnz, p.indptr, p.indices, values, dy, x, dx,
        values.new_empty(2 * p.nnz), dvalues,
    )  # fmt: skip
    return {"forward": ({"rows": forward}, [y]), "backward": ({"samples": backward}, [dx, dvalues])}


def entries(library, kept, w, x):
    """The reference's products of a matrix with few entries a row: `kept @ w` and `kept.T @ x`.

    Returns:
        For each the calls by name and the tensor that they write.
    """
    y, yt, t = w.new_empty(kept.rows, w.shape[1]), x.new_empty(kept.width, x.shape[1]), kept.transpose

    def variants(name, *arguments):
        shared = {"rows": 0, "columns": 1}
        return {by: _call(library, name, ctypes.c_int(flag), *arguments) for by, flag in shared.items()}

    times = variants("entries_times", kept.rows, kept.indptr, kept.indices, None, kept.values, w, w.shape[1], y)
    t_times = variants("entries_times", kept.width, t.indptr, t.indices, t.perm, kept.values, x, x.shape[1], yt)
    return {"times": (times, [y]), "t_times": (t_times, [yt])}


def convolution(library, plan, values, x, y, dy):
    """The reference's 3 x 3 convolution, padding 1, by our plan of addresses; x, y, dy channel-major.

    Returns:
        For "forward" and "backward" the calls by name and the tensors that they write.
    """
    indptr, indices, t_indptr, t_indices, t_perm = plan.held
    count, channels, height, width = x.shape
    stride, _, some = plan.convolution[-3:]
    sizes = count, channels, y.shape[1], height, width, some, stride
    y, dx, dvalues = torch.empty_like(y), torch.empty_like(x), torch.empty_like(values)
    parts = values.new_empty(torch.get_num_threads() * len(values))
    forward = _call(library, "conv", *sizes, indptr, indices, values, x, y)
    backward = _call(
        library, "conv_backward", *sizes, len(values), t_indptr, t_indices, t_perm, values, x, dy, dx, parts, dvalues
    )
    return {"forward": ({"images": forward}, [y]), "backward": ({"images": backward}, [dx, dvalues])}
