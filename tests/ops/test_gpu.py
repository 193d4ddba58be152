"""The Triton kernels in Triton's interpreter, and compiled for a GPU that need not be there; in processes of their own,
since the interpreter is switched on as a process starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from filigree.ops import gpu

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not gpu.available, reason="Triton is not installed")

COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from filigree.ops import triton_products, triton_transforms
import triton.language as tl

INTEGERS = {"batch": "i32", "n_in": "i32", "n_out": "i32", "indptr": "*i32", "indices": "*i32", "perm": "*i32",
            "positions": "*i32", "scale": "fp32"}
PRODUCT = {"WIDE": False, "SUM": tl.float32, "K": 16, "B": 128}
for kernel, constants in [
    (triton_products.spmm_kernel, PRODUCT | {"HAS_PERM": False, "HAS_BIAS": True, "RELU": True}),
    (triton_products.spmm_kernel, PRODUCT | {"HAS_PERM": True, "HAS_BIAS": False, "RELU": False, "WIDE": True}),
    (triton_products.sddmm_kernel, PRODUCT),
    (triton_transforms.acdc_kernel, {"N": 64, "LOG": 5, "HAS_BIAS": True}),
    (triton_transforms.acdc_backward_kernel, {"N": 64, "LOG": 5}),
    (triton_transforms.hadamard_kernel, {"N": 64, "LOG": 6}),
]:
    types = {name: "i32" if name.endswith("_stride") else INTEGERS.get(name, "*fp32") for name in kernel.arg_names}
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
    assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
print("ok")
"""


def run(*arguments, interpret):
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if interpret else {})
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=ROOT)
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of this Triton does not run with numpy 2.4")
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.long("the interpreter takes half a minute")
def test_kernels_equal_the_reference_in_the_interpreter():
    assert run("tests/ops/gpu_kernels.py", "cpu", interpret=True).strip() == "ok"


@pytest.mark.long("compiles six kernels")
def test_kernels_compile_for_hopper():
    assert run("-c", COMPILE, interpret=False).strip() == "ok"


@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="an installation without the benchmarks")
def test_the_benchmark_is_rehearsed(tmp_path):
    printed = run("benchmarks/gpu.py", "--rehearse", "--record", str(tmp_path / "gpu.json"), interpret=True)
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["rehearsal"]
    assert not record["left_out"]
    rows = record["rows"]
    assert {row["kind"] for row in rows} == {"sparse", "structured", "tiles"}
    assert {row["product"] for row in rows} == {"forward", "input gradient", "weight gradient", "training step"}
    names = {"sparse fp32", "sparse bf16", "cuSPARSE", "dense fp32", "dense tf32", "dense bf16", "ACDC", "Fastfood"}
    assert {row["contestant"] for row in rows} == names
    assert all(row["ms"] > 0 for row in rows if "failed" not in row)
    assert not [row for row in rows if "failed" in row]
    assert "| training step |" in printed
