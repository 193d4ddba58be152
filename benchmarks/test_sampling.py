"""Sampling: quantising, layers of integers, partition dropout and topologies of paths, against dense torch."""

import copy
import time

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.measure.timing import time_interleaved
from filigree.topology import Size


def median_of(call, runs=5):
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return sorted(times)[runs // 2]


def test_quantising_ten_million_weights(suite, benchmark):
    model = nn.Sequential(nn.Linear(3200, 1600), nn.ReLU(), nn.Linear(1600, 1600), nn.ReLU(), nn.Linear(1600, 1500))
    weights = sum(layer.weight.numel() for layer in model if isinstance(layer, nn.Linear))
    assert weights >= 10_000_000
    data = torch.randn(1000, 3200)
    for name, config, x, runs in (
        ("plain", fg.MonteCarlo(0.12), None, 5),
        ("plain, 1 sample a weight", fg.MonteCarlo(1.0), None, 3),
        ("rms", fg.MonteCarlo(0.12, calibrate="rms"), data, 3),
        ("handed on", fg.MonteCarlo(0.12), data, 1),
    ):
        copies = [copy.deepcopy(model) for _ in range(runs)]
        seconds = median_of(lambda c=copies, f=config, d=x: fg.compress_(c.pop(), f, d), runs)
        suite.add(weights=weights, calibration=name, seconds=seconds, goal=2 if name == "plain" else None)
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.parametrize("batch", [1, 2, 16, 128])
def test_ternary_layer(suite, benchmark, batch):
    n = 4096
    dense = nn.Linear(n, n)
    model = nn.Sequential(copy.deepcopy(dense))
    fg.compress_(model, fg.MonteCarlo(0.12))
    layer = model[0]
    assert int(layer.counts.abs().max()) == 1
    x = torch.randn(batch, n)
    rows = torch.randn(n, batch).t()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.dense()(x), rtol=1e-3, atol=1e-4)
    with torch.inference_mode():
        base, ours, feature_major = time_interleaved(
            [lambda: dense(x), lambda: layer(x), lambda: layer(rows)], seconds=1
        )
    suite.add(
        batch=batch, n=n, density=layer.nnz / n**2, dense_ms=base.median, ms=ours.median, low=ours.low, high=ours.high,
        times_dense=base.median / ours.median, feature_major_times=base.median / feature_major.median,
        goal={1: 3, 128: 2}.get(batch),
    )  # fmt: skip
    benchmark.pedantic(lambda: layer(x), rounds=10, warmup_rounds=2)


@pytest.mark.parametrize("shape", [(128, 1000), (128, 4000), (32, 64, 32, 32)])
def test_partition_dropout(suite, benchmark, shape):
    x, dy = torch.randn(shape), torch.randn(shape)
    contestants = {
        "nn.Dropout": nn.Dropout(0.25), "partition, unit": fg.nn.PartitionedDropout(4),
        "partition, element": fg.nn.PartitionedDropout(4, "element"),
    }  # fmt: skip

    def both(layer):
        def run():
            mine = x.detach().requires_grad_()
            return torch.autograd.grad(layer(mine), mine, dy)

        return run

    forward = [lambda layer=layer: layer(x) for layer in contestants.values()]
    for what, calls in (("forward", forward), ("forward and backward", [both(m) for m in contestants.values()])):
        times = time_interleaved(calls, seconds=0.5)
        for name, timing in zip(contestants, times, strict=True):
            suite.add(shape=list(shape), what=what, layer=name, ms=timing.median,
                      share_of_dropout=timing.median / times[0].median, goal=0.1)  # fmt: skip
    benchmark.pedantic(forward[1], rounds=10, warmup_rounds=2)


@pytest.mark.parametrize("parts", [2, 4])
def test_dropped_rows(suite, benchmark, parts):
    """A training step of an MLP whose dropped rows are computed, and one whose are not."""
    for kind in ("dense", "sparse"):
        model = fg.models.mlp([1000, 2000, 2000, 10], dropout=1 / parts)
        if kind == "sparse":
            fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=20)), where=["fc1", "fc2"])
        skipping, computing, plain = (copy.deepcopy(model) for _ in range(3))
        fg.convert_(skipping, fg.PartitionDropout(parts))
        for key in ("dropout1", "dropout2"):
            setattr(computing, key, fg.nn.PartitionedDropout(parts))
        x, y = torch.randn(128, 1000), torch.randint(10, (128,))
        calls = []
        for net in (plain, computing, skipping):
            optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9, fused=True)

            def step(net=net, optimizer=optimizer, x=x, y=y):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()

            calls.append(step)
        dropout, all_rows, kept = (t.median for t in time_interleaved(calls, seconds=1))
        suite.add(layers=kind, parts=parts, dropout_ms=dropout, all_rows_ms=all_rows, kept_rows_ms=kept,
                  times_dropout=dropout / kept, times_all_rows=all_rows / kept)  # fmt: skip
    benchmark.pedantic(calls[2], rounds=3)


def test_paths_topology(suite, benchmark):
    for sequence in ("sobol", "random"):
        for sizes, paths in (([Size(2**14, 2**14)] * 3, 10**7 // 3 + 1), ([Size(2**16, 2**16)], 10**7)):
            topology = fg.Paths(paths, sequence=sequence)
            seconds = median_of(lambda t=topology, s=sizes: t.draw(s, torch.Generator().manual_seed(0)), 3)
            edges = sum(map(len, topology.draw(sizes, torch.Generator().manual_seed(0))))
            suite.add(sequence=sequence, layers=len(sizes), paths=paths, edges=edges, seconds=seconds, goal=3)
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.parametrize("batch", [1, 16, 128])
def test_constant_fan_in(suite, benchmark, batch):
    """Does it matter to the kernels that all rows are equally long?"""
    for n in (1000, 4000):
        constant = fg.nn.SparseLinear(n, n, fg.ConstantFanIn(40))
        random = fg.nn.SparseLinear(n, n, fg.ErdosRenyi(density=40 / n))
        paths = fg.nn.SparseLinear(n, n, fg.Paths(40 * n))
        x = torch.randn(n, batch).t()
        with torch.inference_mode():
            a, b, c = time_interleaved([lambda m=m, x=x: m(x) for m in (random, constant, paths)], seconds=0.5)
        suite.add(n=n, batch=batch, erdos_renyi_ms=a.median, constant_ms=b.median, paths_ms=c.median)
    benchmark.pedantic(lambda: constant(x), rounds=3)
