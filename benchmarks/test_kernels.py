"""Each kernel alone at batch 128: the whole step against their sum, plain intrinsics, the bound that they run into."""

import intrinsics
import pytest
import scipy.sparse
import torch
from networks import SIZES, ours
from torch import nn

import filigree as fg
from filigree.measure.cost import training_step
from filigree.measure.timing import time_interleaved
from filigree.ops import kernels, selection
from filigree.ops.addresses import compressed_rows, index, matrix, strided
from filigree.ops.conv import _plan as conv_plan


def _kernel_works(layer, x_rows, need_input):
    """Forward and backward of one layer as the module calls them, on ready buffers; bias and ReLU included."""
    y, dy = (torch.randn(layer.out_features, x_rows.shape[1]) for _ in range(2))
    return _works(layer, x_rows, y, dy, need_input, True)[0]


def _works(layer, x, y, dy, need_input, finish):
    """The kernels' calls on feature-major matrices, and the tensors that they write; `finish`: with bias and ReLU."""
    batch, values, bias = x.shape[1], layer.values.detach(), layer.bias.detach()
    dx, dvalues, dbias = torch.empty_like(x), torch.empty_like(values), torch.empty_like(bias)
    layers = [(index(layer.pattern), values.data_ptr(), bias.data_ptr() if finish else 0, finish, 0, 0.0, 0)]
    gradients = [(dvalues.data_ptr(), dbias.data_ptr() if finish else 0)]
    to_x, to_y, to_dy, to_dx = (strided(tensor.t()) for tensor in (x, y, dy, dx))
    held = (layer, x, y, dy, dx, dvalues, dbias)  # addresses outlive nothing

    def forward(_=held):
        kernels.chain(False, layers, batch, to_x, to_y, 0)

    def backward(_=held):
        kernels.chain_backward(
            False, layers, batch, to_x, 0, to_y if finish else strided(None), to_dy,
            to_dx if need_input else strided(None), gradients,
        )  # fmt: skip

    return {"forward": forward, "backward": backward}, {"forward": [y], "backward": [dx, dvalues]}


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


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return intrinsics.build(tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("width", [1000, 4000, 16000])
def test_against_intrinsics(width, library, suite, benchmark):
    """How near the kernels come to the best variant of plain intrinsics (`reference.cpp`): goal 0.9.

    Once with nothing between the calls, and once with the input "just written": all threads write x and dy anew before
    each call, as layers do in a network; the time that this takes alone is subtracted.
    """
    per_row, batch = 40, 128
    layer = fg.nn.SparseLinear(width, width, fg.ErdosRenyi(density=per_row / width))
    x, dy, y = torch.randn(width, batch), torch.randn(width, batch), torch.empty(width, batch)
    references = intrinsics.contestants(library, layer, x, dy)
    mine, written = _works(layer, x, y, dy, True, False)
    expected = _products(layer, x, dy)
    for kernel, flops in (("forward", 2), ("backward", 4)):
        variants, outputs = references[kernel]
        for works, tensors in ((variants, outputs), ({"ours": mine[kernel]}, written[kernel])):
            for name, work in works.items():
                _check(f"{kernel}, {name}", work, tensors, expected[kernel])
        works = [mine[kernel], *variants.values()]
        ours, *timings = time_interleaved(works, seconds=0.5)
        best = min(range(len(timings)), key=lambda i: timings[i].median)
        best_name = list(variants)[best]
        rate = flops * layer.nnz * batch / 1e6
        suite.add(
            width=width, kernel=kernel, ms=ours.median, gflops=rate / ours.median,
            reference=best_name, reference_gflops=rate / timings[best].median,
            share_of_reference=timings[best].median / ours.median, goal=0.9,
            variants={name: round(rate / t.median, 1) for name, t in zip(variants, timings, strict=True)},
        )  # fmt: skip
        ours_after, best_after = _after_writing([mine[kernel], variants[best_name]], x, dy)
        suite.add(
            width=width, kernel=kernel, input="just written", ms=ours_after, gflops=rate / ours_after,
            reference=best_name, reference_gflops=rate / best_after, share_of_reference=best_after / ours_after,
        )  # fmt: skip
    benchmark.pedantic(mine["forward"], rounds=50, warmup_rounds=5)


def _share(suite, mine, references, flops, expected, written, **what):
    """Add a row for each product: ours beside the best of the reference's variants, results checked first."""
    for kernel, (variants, outputs) in references.items():
        for works, tensors in ((variants, outputs), ({"ours": mine[kernel]}, written[kernel])):
            for name, work in works.items():
                _check(f"{kernel}, {name}", work, tensors, expected[kernel])
        ours, *timings = time_interleaved([mine[kernel], *variants.values()], seconds=0.5)
        best, name = min((t.median, name) for t, name in zip(timings, variants, strict=True))
        rate = flops[kernel] / 1e6
        suite.add(
            **what, kernel=kernel, ms=ours.median, gflops=rate / ours.median, reference=name,
            reference_gflops=rate / best, share_of_reference=best / ours.median, goal=0.9,
        )  # fmt: skip


@pytest.mark.parametrize(("channels", "side"), [(64, 32), (128, 16), (256, 8)])
def test_convolution_against_intrinsics(channels, side, library, suite, benchmark):
    """3 x 3 convolutions, 95% sparse, 64 images: packing and unpacking included on both sides."""
    mask = torch.rand(channels, channels, 3, 3) < 0.05
    layer = fg.nn.SparseConv2d.from_dense(nn.Conv2d(channels, channels, 3, padding=1, bias=False), mask)
    x, dy, y, dx = (torch.randn(channels, 64, side, side).transpose(0, 1) for _ in range(4))
    values = layer.values.detach()
    plan, dvalues = conv_plan(*layer.pattern[:2], x, layer._geometry), torch.empty_like(values)
    images = {name: (t.data_ptr(), *t.stride()) for name, t in {"x": x, "y": y, "dy": dy}.items()}
    mine = {
        "forward": lambda: kernels.conv(False, plan.convolution, values.data_ptr(), 0, images["x"], images["y"]),
        "backward": lambda: kernels.conv_backward(
            False, plan.convolution, values.data_ptr(), images["x"], images["dy"], dvalues.data_ptr(), 0, dx.data_ptr()
        ),
    }
    inner, weight = x.clone().requires_grad_(), layer.dense().weight.detach().requires_grad_()
    right = nn.functional.conv2d(inner, weight, padding=1)
    to_x, to_weight = torch.autograd.grad(right, [inner, weight], dy)
    expected = {"forward": [right.detach()], "backward": [to_x, to_weight[mask]]}
    work = layer.nnz * 64 * side * side
    _share(
        suite, mine, intrinsics.convolution(library, plan, values, x, y, dy),
        {"forward": 2 * work, "backward": 4 * work}, expected, {"forward": [y], "backward": [dx, dvalues]},
        convolution=f"{channels} channels, {side} x {side}",
    )  # fmt: skip
    benchmark.pedantic(mine["forward"], rounds=5, warmup_rounds=1)


@pytest.mark.parametrize(("width", "count"), [(1000, 40), (1000, 125), (4000, 40), (4000, 500)])
def test_chosen_rows_against_intrinsics(width, count, library, suite, benchmark):
    """Some rows of a layer, as unified top-k and partitioned dropout compute them."""
    layer = fg.nn.SparseLinear(width, width, fg.ErdosRenyi(density=40 / width))
    p, values = layer.pattern, layer.values.detach()
    chosen = torch.randperm(width)[:count].sort().values
    x, dy, y = torch.randn(width, 128), torch.randn(count, 128), torch.zeros(width, 128)
    dx, dvalues = torch.empty_like(x), torch.empty_like(values)
    some = chosen.data_ptr(), count
    rows_of_w = compressed_rows(p.indptr, p.indices)
    mine = {
        "forward": lambda: kernels.rows_spmm(
            False, rows_of_w, some, values.data_ptr(), matrix(x), matrix(y), 128, 0, False
        ),
        "backward": lambda: kernels.rows_backward(
            False, index(p), some, values.data_ptr(), matrix(dy), False, matrix(None), matrix(x), matrix(dx),
            dvalues.data_ptr(), 0, 128,
        ),
    }  # fmt: skip
    products = _products(layer, x, torch.zeros_like(y).index_copy_(0, chosen, dy))
    left = torch.full_like(y, float("nan")).index_copy_(0, chosen, products["forward"][0][chosen])  # as they were
    references = intrinsics.rows(library, layer, chosen, x, dy)
    work = 128 * int(p.indptr.diff()[chosen].sum())
    _share(
        suite, mine, references, {"forward": 2 * work, "backward": 4 * work},
        {**products, "forward": [left]}, {"forward": [y], "backward": [dx, dvalues]}, width=width, chosen=count,
    )  # fmt: skip
    benchmark.pedantic(mine["backward"], rounds=50, warmup_rounds=5)


@pytest.mark.parametrize(("n_in", "n_out"), [(784, 512), (1024, 1024)])
def test_largest_against_intrinsics(n_in, n_out, library, suite, benchmark):
    """Both products with the 40 largest gradients of each of 128 samples."""
    w, x = torch.randn(n_out, n_in), torch.randn(128, n_in)
    kept = selection.top(torch.randn(128, n_out), 40)
    dense, t = kept.dense(), kept.transpose
    y, yt = torch.empty(128, n_in), torch.empty(n_out, n_in)

    def product(rows, by, out):
        return lambda: kernels.spmm(False, rows, kept.values.data_ptr(), matrix(by), matrix(out), n_in, 0, False)

    mine = {
        "times": product(compressed_rows(kept.indptr, kept.indices), w, y),
        "t_times": product(compressed_rows(t.indptr, t.indices, t.perm), x, yt),
    }
    work = 2 * 128 * 40 * n_in
    _share(
        suite, mine, intrinsics.entries(library, kept, w, x), {"times": work, "t_times": work},
        {"times": [dense @ w], "t_times": [dense.t() @ x]}, {"times": [y], "t_times": [yt]},
        layer=f"{n_in} -> {n_out}, top 40",
    )  # fmt: skip
    benchmark.pedantic(mine["times"], rounds=50, warmup_rounds=5)


def _after_writing(works, x, dy):
    """The milliseconds of each call after all threads wrote x and dy anew, without those of the writing."""

    def write():
        x.mul_(1)
        dy.mul_(1)

    def after(work):
        return lambda: (write(), work())

    writing, *timings = time_interleaved([write, *map(after, works)], seconds=0.5)
    return [t.median - writing.median for t in timings]


def _products(layer, x, dy):
    """Outputs of the forward and the backward pass by scipy, and by a dot product for each connection."""
    pattern = layer.pattern
    shape = (pattern.rows, pattern.cols)
    weight = scipy.sparse.csr_array((layer.values.detach(), pattern.indices, pattern.indptr), shape=shape)
    coordinates = weight.tocoo()
    rows, columns = (torch.from_numpy(c).long().split(65536) for c in (coordinates.row, coordinates.col))
    dvalues = torch.cat([(dy[r] * x[c]).sum(1) for r, c in zip(rows, columns, strict=True)])
    y, dx = (torch.from_numpy(product) for product in (weight @ x.numpy(), weight.T @ dy.numpy()))
    return {"forward": [y], "backward": [dx, dvalues]}


def _check(name, work, written, expected):
    for tensor in written:
        tensor.fill_(float("nan"))
    work()
    for mine, right in zip(written, expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-3, equal_nan=True, msg=lambda m: f"{name}: {m}")
