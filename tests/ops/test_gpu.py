"""The Triton kernels in Triton's interpreter, on CPU tensors; in a process of their own, where it is switched on."""

import os
import subprocess
import sys

import pytest

from filigree.ops import gpu

SCRIPT = """
import torch
from filigree.ops import gpu, reference
from filigree.topology.flat_indices import distinct, pattern_from_flat_indices

for rows, cols, nnz, batch, dtype in [
    (7, 5, 12, 3, torch.float32), (40, 33, 300, 130, torch.float32), (40, 33, 300, 64, torch.float64),
    (6, 4, 0, 3, torch.float32), (6, 4, 24, 0, torch.float32), (1, 70, 50, 1, torch.float64),
]:
    p = pattern_from_flat_indices(distinct(rows * cols, nnz, torch.Generator().manual_seed(nnz)), rows, cols)
    values, bias = torch.randn(nnz, dtype=dtype), torch.randn(rows, dtype=dtype)
    x, dy = torch.randn(cols, batch, dtype=dtype), torch.randn(batch, rows, dtype=dtype).t()
    close = torch.testing.assert_close
    close(gpu.spmm(p, values, x), reference.spmm(p, values, x))
    close(gpu.spmm_t(p, values, dy), reference.spmm_t(p, values, dy))
    close(gpu.sddmm(p, dy, x), reference.sddmm(p, dy, x))
    y = gpu.linear(p, values, bias, x.t(), True)
    expected = reference.linear(p, values, bias, x.t(), True)
    close(y, expected)
    v, b, inner = (t.detach().clone().requires_grad_() for t in (values, bias, x.t()))
    dense = reference.linear(p, v, b, inner, True)
    wanted = torch.autograd.grad(dense, [v, b, inner], dy.t())
    for a, e in zip(gpu.linear_backward(p, values, x, y, dy.t(), True, True), wanted, strict=True):
        close(a, e)
print("ok")
"""


@pytest.mark.skipif(not gpu.available, reason="triton is not installed")
def test_kernels_equal_the_reference_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of this Triton does not run with numpy 2.4")
    assert done.stdout.strip() == "ok", done.stderr[-2000:]
