"""The Triton kernels against plain torch: `python tests/ops/gpu_kernels.py cuda`, or `cpu` under TRITON_INTERPRET=1."""

import sys

import torch

from filigree.ops import gpu, gpu_sell, reference, sell
from filigree.topology.flat_indices import distinct, pattern_from_flat_indices

SHAPES = [  # rows, cols, nonzeros, batch
    (7, 5, 12, 3), (20, 33, 200, 130), (20, 33, 200, 64), (6, 4, 0, 3), (6, 4, 24, 0), (1, 70, 50, 1), (3, 300, 700, 1),
    (3, 300, 700, 20),
]  # fmt: skip
HALF = {torch.bfloat16: 1e-2, torch.float16: 2e-3}

ACDC = [("diagonal", 0), ("dct", None), ("diagonal", 1), ("bias", 2), ("idct", None)]
PLAIN = [("diagonal", 0), ("dct", None), ("diagonal", 1), ("idct", None)]
FASTFOOD = [("diagonal", 0), ("hadamard", None), ("permute", 3), ("diagonal", 1), ("hadamard", None), ("diagonal", 2)]


def close(actual, expected):
    """To the precision of the actual one's type; half precision against float64."""
    if (tolerance := HALF.get(actual.dtype)) is not None:
        assert (actual.double() - expected).norm() <= tolerance * expected.norm()
    else:
        torch.testing.assert_close(actual, expected.to(actual.dtype))


def check_sparse(device, dtype, shapes=SHAPES):
    """Each product, and the layer with its backward pass, equal the dense reference; twice, the same bits."""
    for rows, cols, nnz, batch in shapes:
        flat = distinct(rows * cols, nnz, torch.Generator().manual_seed(nnz))
        p = type(q := pattern_from_flat_indices(flat, rows, cols))(*(part.to(device) for part in q))
        draw = {"dtype": dtype, "device": device}
        values, bias, x = torch.randn(nnz, **draw), torch.randn(rows, **draw), torch.randn(cols, batch, **draw)
        dy = torch.randn(batch, rows, **draw).t()
        exact = torch.float64 if dtype in HALF else dtype
        wide = [t.to(exact) for t in (values, bias, x, dy)]
        close(gpu.spmm(p, values, x), reference.spmm(p, wide[0], wide[2]))
        close(gpu.spmm_t(p, values, dy), reference.spmm_t(p, wide[0], wide[3]))
        close(gpu.sddmm(p, dy, x), reference.sddmm(p, wide[3], wide[2]))
        y = gpu.linear(p, values, bias, x.t(), True)
        v, b, inner = (t.detach().clone().requires_grad_() for t in (*wide[:2], wide[2].t()))
        dense = reference.linear(p, v, b, inner, False)
        close(y, dense.detach().relu())
        mask = y > 0  # of the rounded output, so that half precision has the same one
        wanted = torch.autograd.grad(dense, [v, b, inner], torch.where(mask, wide[3].t(), 0))
        gradients = gpu.linear_backward(p, values, x, y, dy.t(), True, True)
        for actual, expected in zip(gradients, wanted, strict=True):
            close(actual, expected)
        again = gpu.linear(p, values, bias, x.t(), True), *gpu.linear_backward(p, values, x, y, dy.t(), True, True)
        assert all(map(torch.equal, again, (y, *gradients)))


def check_far_addresses(device):
    """A matrix whose rows lie 2^31 numbers apart; only a few pages of it are touched."""
    flat = torch.arange(6)
    p = type(q := pattern_from_flat_indices(flat, 2, 3))(*(part.to(device) for part in q))
    near = torch.arange(6, dtype=torch.float16, device=device).view(3, 2)
    x = near.new_empty((1 << 31) + 2).as_strided((3, 2), (1 << 30, 1))
    x.copy_(near)
    values, dy = near.flatten(), near.new_ones(2, 2)
    assert torch.equal(gpu.spmm(p, values, x), values.view(2, 3) @ near)
    assert torch.equal(gpu.sddmm(p, dy, x), (dy @ near.t()).flatten())


def check_structured(device, n, dtype):
    """Programs of ACDC and Fastfood, and their gradients, equal plain torch's."""
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {}
    draw = {"dtype": dtype, "device": device, "requires_grad": True}
    tensors = [*(torch.randn(n, **draw) for _ in range(3)), torch.randperm(n, device=device)]
    for steps in (ACDC, PLAIN, [*ACDC, ("relu", None), ("permute", 3), *PLAIN], FASTFOOD):
        for ins, outs, batch in ((n, n, 3), (n - 1, n - 2, 1), (n, n, 0)):
            x = torch.randn(batch, ins, **draw)
            y = sell._on_gpu(x, steps, n, outs, tensors)
            expected = sell.reference(x, steps, n, outs, tensors)
            torch.testing.assert_close(y, expected, **tolerance)
            dy, sources = torch.randn_like(expected), [x, *tensors[:3]]
            actual = torch.autograd.grad(y, sources, dy, allow_unused=True)
            wanted = torch.autograd.grad(expected, sources, dy, allow_unused=True)
            for a, b in zip(actual, wanted, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b, **tolerance)


def check(device):
    """All of it, on a device."""
    assert gpu.available
    assert gpu_sell.available
    for dtype in (torch.float32, torch.float64):
        check_sparse(device, dtype)
    for dtype in HALF:
        check_sparse(device, dtype, SHAPES[1::3])
    check_far_addresses(device)
    for n, dtype in ((4, torch.float64), (8, torch.float32), (64, torch.float64), (256, torch.float32)):
        check_structured(device, n, dtype)


if __name__ == "__main__":
    torch.manual_seed(0)
    check(sys.argv[1])
    print("ok")
