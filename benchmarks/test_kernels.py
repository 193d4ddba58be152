"""Each kernel alone at batch 128, their sum against the whole step, and the bound that they run into."""

import pytest
import torch
from networks import SIZES, ours

import filigree as fg
from filigree.cost import training_step
from filigree.ops import kernels
from filigree.timing import race


def _kernel_works(layer, x_rows, need_input):
    """Forward, ReLU and bias gradient, and backward of one layer as the module calls them, on ready buffers."""
    p, rows, cols, batch = layer.pattern, layer.out_features, layer.in_features, x_rows.shape[1]
    y, dy, dz = torch.randn(rows, batch), torch.randn(rows, batch), torch.randn(rows, batch)
    dx, dvalues, dbias = torch.empty(cols, batch), torch.empty_like(layer.values), torch.empty(rows)
    at = {name: tensor.data_ptr() for name, tensor in locals().items() if isinstance(tensor, torch.Tensor)}
    index = [part.data_ptr() for part in p]
    values, bias = layer.values.data_ptr(), layer.bias.data_ptr()
    held = (y, dy, dz, dx, dvalues, dbias, x_rows, layer)  # addresses outlive nothing

    def forward(_=held):
        kernels.spmm(False, False, rows, *index[:2], 0, values, at["x_rows"], batch, at["y"], batch, batch, bias, True)

    def delta():
        kernels.delta(False, rows, batch, at["dy"], batch, 1, at["y"], batch, at["dz"], batch, at["dbias"])

    def backward():
        if need_input:
            kernels.backward(False, False, cols, *index[2:], values, at["dz"], batch, at["x_rows"], batch, at["dx"],
                             batch, at["dvalues"], batch)  # fmt: skip
        else:
            kernels.sddmm(False, False, rows, *index[:2], at["dz"], batch, at["x_rows"], batch, at["dvalues"], batch)

    return {"spmm": forward, "delta": delta, "backward" if need_input else "sddmm": backward}


@pytest.mark.parametrize("name", SIZES)
def test_step_against_its_kernels(name, suite, benchmark):
    """Goal: the whole step at most 1.4 times the sum of its kernels."""
    model, batch = ours(SIZES[name]), 128
    x, y = torch.randn(batch, SIZES[name][0]), torch.randint(0, 10, (batch,))
    works, labels = [training_step(model, x, y)], [("step", 0)]
    for number, layer in enumerate(m for m in model if isinstance(m, fg.nn.SparseLinear)):
        for label, work in _kernel_works(layer, torch.randn(layer.in_features, batch), number > 0).items():
            works.append(work)
            labels.append((label, layer.nnz * batch * (4 if label == "backward" else 2)))
    timings = race(works, seconds=1)
    total = sum(t.median for t in timings[1:])
    for (label, flops), t in zip(labels[1:], timings[1:], strict=True):
        suite.add(network=name, kernel=label, ms=t.median, gflops=flops / t.median / 1e6 if label != "delta" else None)
    step = timings[0].median
    suite.add(network=name, kernel="all", ms=total, step_ms=step, step_over_kernels=step / total, goal=1.4)
    benchmark.pedantic(works[1], rounds=50, warmup_rounds=5)


@pytest.mark.parametrize("width", [1000, 4000, 16000])
def test_bound(width, suite, benchmark):
    """The same product with every nonzero reading the next row in turn: the data path without the randomness.

    What a random pattern reaches of this is what locality still costs.
    """
    per_row, batch = 40, 128
    places = (
        torch.arange(width).unsqueeze(1) * width + (torch.arange(width).unsqueeze(1) + torch.arange(per_row)) % width
    )
    ordered = fg.nn.SparseLinear(width, width, places=places.flatten().sort().values)
    random = fg.nn.SparseLinear(width, width, fg.ErdosRenyi(density=per_row / width))
    x = torch.randn(width, batch)
    works = [w for layer in (ordered, random) for w in _kernel_works(layer, x, True).values()]
    timings = race(works, seconds=1)
    for label, a, b in zip(("spmm", "delta", "backward"), timings[:3], timings[3:], strict=True):
        if label != "delta":
            suite.add(
                width=width, kernel=label, bound_ms=a.median, ms=b.median, share_of_bound=a.median / b.median, goal=0.7
            )
    benchmark.pedantic(works[3], rounds=50, warmup_rounds=5)
