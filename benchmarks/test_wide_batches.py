"""A transformer's layers at the rows that it brings: forward and backward, batch-major, sparse against dense.

Goals at 1,024 and 4,096 rows: 2.5 times dense at 90% sparsity, not slower than dense at 70%.

The output and the gradient of the input are wanted in the memory order of a transformer, whose norms and residual sums
are batch-major: where a layer makes another order, the copy is counted. The crossover is the sparsity at which both
take the same time, interpolated between the neighbours in `SPARSITIES` where the faster one changes.
"""

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.measure.timing import time_interleaved

LAYERS = [(640, 2560), (2560, 640), (768, 3072), (3072, 768)]
SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
GOALS = {0.7: 1.0, 0.9: 2.5}  # times faster than dense


@pytest.mark.parametrize("rows", [128, 1024, 4096])
@pytest.mark.parametrize("widths", LAYERS, ids=str)
def test_wide_batches(widths, rows, suite, benchmark):
    x, dy = torch.randn(rows, widths[0]), torch.randn(rows, widths[1])
    layers = [fg.nn.SparseLinear(*widths, fg.ErdosRenyi(density=1 - sparsity)) for sparsity in SPARSITIES]
    for layer in layers:
        _check(layer, x, dy)
    works = [_pass(layer, x, dy) for layer in (nn.Linear(*widths), *layers)]
    dense, *timings = time_interleaved(works, seconds=1)
    name = "{} -> {}".format(*widths)
    suite.add(layer=name, rows=rows, contestant="dense", ms=dense.median, low=dense.low, high=dense.high)
    for layer, sparsity, t in zip(layers, SPARSITIES, timings, strict=True):
        suite.add(
            layer=name, rows=rows, contestant="filigree", sparsity=sparsity, ms=t.median, low=t.low, high=t.high,
            gflops=6 * layer.nnz * rows / t.median / 1e6, times_dense=dense.median / t.median,
            goal=GOALS.get(sparsity) if rows >= 1024 else None,
        )  # fmt: skip
    suite.add(layer=name, rows=rows, crossover=crossover(SPARSITIES, [t.median for t in timings], dense.median))
    benchmark.pedantic(works[1 + SPARSITIES.index(0.9)], rounds=5, warmup_rounds=1)


def crossover(sparsities, times, dense):
    """From which sparsity on the sparse layer is faster; text where that is outside the range."""
    slower = [number for number, time in enumerate(times) if time >= dense]
    if not slower:
        return f"below {sparsities[0]}"
    if slower[-1] == len(times) - 1:
        return f"above {sparsities[-1]}"
    left, right = slower[-1], slower[-1] + 1
    share = (times[left] - dense) / (times[left] - times[right])
    return sparsities[left] + share * (sparsities[right] - sparsities[left])


def _pass(layer, x, dy):
    """A forward and backward pass, as a call that returns the output and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    parameters = list(layer.parameters())

    def run():
        y = layer(x).contiguous()
        dx, *gradients = torch.autograd.grad(y, [x, *parameters], dy)
        return y, dx.contiguous(), *gradients

    return run


def _check(layer, x, dy):
    """The sparse layer's output and gradients are those of the dense one with the same weights."""
    y, dx, dvalues, dbias = _pass(layer, x, dy)()
    expected, expected_dx, dweight, expected_dbias = _pass(layer.dense(), x, dy)()
    pairs = {
        "output": (y, expected), "gradient of the input": (dx, expected_dx), "of the bias": (dbias, expected_dbias),
        "of the values": (dvalues, dweight.flatten()[layer.flat_indices()]),
    }  # fmt: skip
    for what, (mine, theirs) in pairs.items():
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3, msg=lambda m, w=what: f"{w}: {m}")
