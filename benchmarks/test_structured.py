"""Structured layers at batch 128, forward and backward, against nn.Linear of the same size; and what bounds them."""

import math

import pytest
import torch
from torch import nn

from filigree.measure.timing import time_interleaved
from filigree.nn import ACDCLinear, CirculantLinear, FastfoodLinear
from filigree.ops.sell import sell

BATCH = 128
GOALS = {("ACDC", 1024): 7, ("ACDC", 2048): 15, ("ACDC", 4096): 30,
         ("Fastfood", 1024): 12, ("Fastfood", 2048): 24, ("Fastfood", 4096): 45}  # fmt: skip


def work(layer, x, dy):
    mine = x.clone().requires_grad_()
    wanted = [mine, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(mine), wanted, dy)


@pytest.mark.parametrize("n", [512, 1024, 2048, 4096])
def test_structured(n, suite, benchmark):
    x, dy = torch.randn(BATCH, n), torch.randn(BATCH, n)
    layers = {
        "ACDC": ACDCLinear(n, n),
        "ACDC, order 4": ACDCLinear(n, n, order=4),
        "Fastfood": FastfoodLinear(n, n),
        "circulant (torch.fft)": CirculantLinear(n, n),
    }
    for layer in layers.values():  # checked before they are timed
        torch.testing.assert_close(layer(x), layer.dense()(x), rtol=1e-2, atol=1e-2)
    dense = nn.Linear(n, n)
    works = {"dense": work(dense, x, dy)} | {name: work(layer, x, dy) for name, layer in layers.items()}
    rows = torch.randn(n, BATCH).t()
    works |= {f"{name}, feature-major": work(layers[name], rows, rows) for name in ("ACDC", "Fastfood")}
    with torch.no_grad():
        copy = torch.empty_like(x)
        transforms = {
            "hadamard alone": lambda: sell(x, [("hadamard", None)], n, n, []),
            "dct alone": lambda: sell(x, [("dct", None)], n, n, []),
            "torch.fft.rfft": lambda: torch.fft.rfft(x),
            "copy": lambda: copy.copy_(x),
        }
    times = dict(zip(works, time_interleaved(list(works.values()), seconds=1), strict=True))
    with torch.no_grad():
        alone = dict(zip(transforms, time_interleaved(list(transforms.values()), seconds=0.3), strict=True))
    for name, timing in times.items():
        suite.add(
            n=n, layer=name, ms=timing.median, low=timing.low, high=timing.high,
            times_dense=times["dense"].median / timing.median, goal=GOALS.get((name, n)),
        )  # fmt: skip
    additions = {"hadamard alone": math.log2(n), "dct alone": 2.5 * math.log2(n)}  # operations a number, about
    for name, timing in alone.items():
        gflops = additions[name] * BATCH * n / timing.median / 1e6 if name in additions else None
        suite.add(n=n, transform=name, ms=timing.median, gbytes=8 * BATCH * n / timing.median / 1e6, gflops=gflops)
    benchmark.pedantic(works["ACDC"], rounds=20, warmup_rounds=3)


def test_batch_of_one(suite, benchmark):
    for n in (1024, 4096):
        x = torch.randn(1, n)
        dense, acdc, fastfood = nn.Linear(n, n), ACDCLinear(n, n), FastfoodLinear(n, n)
        with torch.no_grad():
            calls = [lambda m=m, x=x: m(x) for m in (dense, acdc, fastfood)]
            base, one, two = (t.median for t in time_interleaved(calls, seconds=0.5))
        suite.add(
            n=n, batch=1, dense_ms=base, acdc_ms=one, fastfood_ms=two, acdc_times=base / one, fastfood_times=base / two
        )
    benchmark.pedantic(lambda: None, rounds=1)
