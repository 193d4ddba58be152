"""Each kernel alone at batch 128, their sum against the whole step, and the bound that they run into."""

import pytest
import torch
from networks import SIZES, ours

import filigree as fg
from filigree.measure.cost import training_step
from filigree.measure.timing import time_interleaved
from filigree.ops import kernels
from filigree.ops.addresses import NO_MATRIX, index, matrix, strided


def _kernel_works(layer, x_rows, need_input):
    """Forward and backward of one layer as the module calls them, on ready buffers; bias and ReLU included."""
    p, rows, cols, batch = layer.pattern, layer.out_features, layer.in_features, x_rows.shape[1]
    y, dy, dz = torch.randn(rows, batch), torch.randn(rows, batch), torch.randn(rows, batch)
    dx, dvalues, dbias = torch.empty(cols, batch), torch.empty_like(layer.values), torch.empty(rows)
    at = {name: matrix(tensor) for name, tensor in locals().items() if isinstance(tensor, torch.Tensor)}
    both = index(p)
    values, bias = layer.values.data_ptr(), layer.bias.data_ptr()
    held = (y, dy, dz, dx, dvalues, dbias, x_rows, layer)  # addresses outlive nothing

    def forward(_=held):
        kernels.spmm(False, both[0], values, at["x_rows"], at["y"], batch, bias, True)

    def backward(_=held):
        kernels.linear_backward(
            False, both, values, (strided(dy.t()), at["y"], at["dz"], dbias.data_ptr()), at["x_rows"],
            at["dx"] if need_input else NO_MATRIX, dvalues.data_ptr(), batch,
        )  # fmt: skip

    return {"forward": forward, "backward": backward}


@pytest.mark.parametrize("name", SIZES)
def test_step_against_its_kernels(name, suite, benchmark):
    """Goal: the whole step at most 1.4 times the sum of its kernels."""
    model, batch = ours(SIZES[name]), 128
    x, y = torch.randn(batch, SIZES[name][0]), torch.randint(0, 10, (batch,))
    works, labels = [training_step(model, x, y)], [("step", 0)]
    for number, layer in enumerate(m for m in model if isinstance(m, fg.nn.SparseLinear)):
        for label, work in _kernel_works(layer, torch.randn(layer.in_features, batch), number > 0).items():
            works.append(work)
            labels.append((label, layer.nnz * batch * (4 if label == "backward" and number > 0 else 2)))
    timings = time_interleaved(works, seconds=1)
    total = sum(t.median for t in timings[1:])
    for (label, flops), t in zip(labels[1:], timings[1:], strict=True):
        suite.add(network=name, kernel=label, ms=t.median, gflops=flops / t.median / 1e6)
    step = timings[0].median
    suite.add(network=name, kernel="all", ms=total, step_ms=step, step_over_kernels=step / total, goal=1.4)
    benchmark.pedantic(works[1], rounds=50, warmup_rounds=5)


@pytest.mark.parametrize("width", [1000, 4000, 16000])
def test_bound(width, suite, benchmark):
    """How near the kernels come to the memory that they read from: goal 70%.

    The bound is the same product with as many nonzeros a row, which read the inputs in order, round and round: every
    byte comes from the level of the memory that holds the layer, at the rate of a stream.
    """
    per_row, batch = 40, 128
    stream = (torch.arange(width * per_row) % width).view(width, per_row) + torch.arange(width).unsqueeze(1) * width
    columns = (torch.arange(width * per_row) % width).view(width, per_row) * width + torch.arange(width).unsqueeze(1)
    x = torch.randn(width, batch)
    works = []
    for label, places in (("forward", stream), ("backward", columns)):
        ordered = fg.nn.SparseLinear(width, width, flat_indices=places.flatten().sort().values)
        random = fg.nn.SparseLinear(width, width, fg.ErdosRenyi(density=per_row / width))
        works += [_kernel_works(layer, x, True)[label] for layer in (ordered, random)]
    bounds = time_interleaved(works, seconds=1)
    for label, bound, mine in (("forward", *bounds[:2]), ("backward", *bounds[2:])):
        gigabytes = width * per_row * batch * 4 / bound.median / 1e6
        suite.add(
            width=width, kernel=label, bound_ms=bound.median, bound_gbytes=gigabytes, ms=mine.median,
            share_of_bound=bound.median / mine.median, goal=0.7,
        )  # fmt: skip
    benchmark.pedantic(works[1], rounds=50, warmup_rounds=5)
