"""Structured layers in Triton's interpreter, on CPU tensors; in a process of their own, where it is switched on."""

import os
import subprocess
import sys

import pytest

from filigree.ops import gpu_sell

SCRIPT = """
import torch
from filigree.ops import gpu_sell, sell

ACDC = [("diagonal", 0), ("dct", None), ("diagonal", 1), ("bias", 2), ("idct", None)]
PLAIN = [("diagonal", 0), ("dct", None), ("diagonal", 1), ("idct", None)]
FASTFOOD = [("diagonal", 0), ("hadamard", None), ("permute", 3), ("diagonal", 1), ("hadamard", None), ("diagonal", 2)]
for n, dtype in ((4, torch.float64), (8, torch.float32), (64, torch.float64), (256, torch.float32)):
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {}
    tensors = [torch.randn(n, dtype=dtype, requires_grad=True) for _ in range(3)] + [torch.randperm(n)]
    for steps in (ACDC, PLAIN, ACDC + [("relu", None), ("permute", 3)] + PLAIN, FASTFOOD):
        for ins, outs, batch in ((n, n, 3), (n - 1, n - 2, 1), (n, n, 0)):
            x = torch.randn(batch, ins, dtype=dtype, requires_grad=True)
            y = sell._on_gpu(x, steps, n, outs, tensors)
            expected = sell.reference(x, steps, n, outs, tensors)
            torch.testing.assert_close(y, expected, **tolerance)
            dy, wanted = torch.randn_like(expected), [x, *tensors[:3]]
            got = torch.autograd.grad(y, wanted, dy, allow_unused=True)
            its = torch.autograd.grad(expected, wanted, dy, allow_unused=True)
            for a, b in zip(got, its, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b, **tolerance)
print("ok")
"""


@pytest.mark.skipif(not gpu_sell.available, reason="Triton is not installed")
def test_the_kernels_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "ok", done.stderr[-2000:]
