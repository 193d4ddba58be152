"""Backward passes that use a part: selection, products and the whole, against torch's dense backward, at batch 128."""

import copy

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

import filigree as fg
from filigree.measure.timing import time_interleaved
from filigree.nn import AsymmetricLinear
from filigree.nn.asymmetric.asymmetric_linear import choose
from filigree.ops import selection

BATCH = 128
METHODS = {
    "top-k": fg.Asymmetric.topk(40),
    "unified top-k": fg.Asymmetric.topk(40, unified=True),
    "partial": fg.Asymmetric.partial(40, 200),
    "unified partial": fg.Asymmetric.partial(40, 200, unified=True),
    "complete": fg.Asymmetric.complete(170),
    "unified complete": fg.Asymmetric.complete(170, unified=True),
}
GOALS = {"top-k": 4, "unified top-k": 6}


def backward_of(linear, config, x, dy):
    """A call of the backward pass alone; delta is half zeros, as a ReLU behind the layer leaves it."""
    layer = linear if config is None else AsymmetricLinear.like(linear).set_rule(config, "fc")
    mine = x.clone().requires_grad_()
    y = layer(mine)
    return lambda: torch.autograd.grad(y, [mine, linear.weight, linear.bias], dy, retain_graph=True)


def numbers(n_in, n_out, batch=BATCH):
    dy = torch.randn(batch, n_out) * 1e-3
    dy[torch.rand_like(dy) < 0.5] = 0
    return nn.Linear(n_in, n_out), torch.randn(batch, n_in), dy


@pytest.mark.parametrize(("n_in", "n_out"), [(784, 512), (1024, 1024)])
def test_backward(n_in, n_out, suite, benchmark):
    linear, x, dy = numbers(n_in, n_out)
    kept = selection.top(dy, 40)
    masked = dy * selection.top_mask(dy, 40)
    expected = [masked @ linear.weight, masked.t() @ x, masked.sum(0)]
    works = {"dense": backward_of(linear, None, x, dy)}
    works |= {name: backward_of(linear, config, x, dy) for name, config in METHODS.items()}
    for ours, reference in zip(works["top-k"](), expected, strict=True):  # checked before it is timed
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-5)
    works["dense products"] = lambda: (dy @ linear.weight, dy.t() @ x)
    works["top-k products"] = lambda: (selection.times(kept, linear.weight), selection.t_times(kept, x))
    works["top-k selection"] = lambda: selection.top(dy, 40)
    works["torch.topk"] = lambda: dy.abs().topk(40, sorted=False)
    works["unified selection"] = lambda: choose(fg.TopK(40), dy, True)
    with torch.no_grad():
        times = dict(zip(works, time_interleaved(list(works.values()), seconds=1), strict=True))
    for name, timing in times.items():
        base = times["dense products" if name.endswith("products") else "dense"].median
        suite.add(
            layer=f"{n_in} -> {n_out}", what=name, ms=timing.median, low=timing.low, high=timing.high,
            times_dense=base / timing.median, goal=5 if name == "top-k products" else GOALS.get(name),
        )  # fmt: skip
    benchmark.pedantic(works["top-k"], rounds=50, warmup_rounds=5)


@pytest.mark.parametrize("width", [1024])
def test_training_step(width, suite, benchmark):
    """l5-1024 with Adam, and the same at the recipe's batch of 32."""
    for batch in (BATCH, 32):
        plain = fg.models.mlp([784, *[width] * 5, 10])
        x, y = torch.rand(batch, 784), torch.randint(0, 10, (batch,))

        def step(model, x=x, y=y):
            optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)

            def run():
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()

            return run

        works = {"dense": step(copy.deepcopy(plain))}
        for name, config in METHODS.items():
            model = copy.deepcopy(plain)
            fg.convert_(model, config)
            works[name] = step(model)
        times = dict(zip(works, time_interleaved(list(works.values()), seconds=2), strict=True))
        for name, timing in times.items():
            suite.add(
                network=f"l5-{width}", batch=batch, what=name, ms=timing.median, low=timing.low, high=timing.high,
                times_dense=times["dense"].median / timing.median,
                goal=1.5 if name == "top-k" and batch == BATCH else None,
            )  # fmt: skip
    benchmark.pedantic(works["top-k"], rounds=10, warmup_rounds=2)


def test_where_each_wins(suite, benchmark):
    """Over widths and k: the backward pass of a square layer."""
    for width in (256, 512, 1024, 2048, 4096):
        linear, x, dy = numbers(width, width)
        for k in (10, 40, 160):
            options = {
                "top-k": fg.Asymmetric.topk(k), "unified": fg.Asymmetric.topk(k, unified=True),
                "partial": fg.Asymmetric.partial(k, k), "unified partial": fg.Asymmetric.partial(k, k, unified=True),
                "complete": fg.Asymmetric.complete(k),
            }  # fmt: skip
            works = {"dense": backward_of(linear, None, x, dy)}
            works |= {name: backward_of(linear, config, x, dy) for name, config in options.items()}
            times = dict(
                zip(works, (t.median for t in time_interleaved(list(works.values()), seconds=0.3)), strict=True)
            )
            suite.add(width=width, k=k, best=min(times, key=times.get), **{f"{n} ms": t for n, t in times.items()})
    benchmark.pedantic(lambda: None, rounds=1)


def test_cost_formulas(suite, benchmark):
    """Srivastava 2022, 9.5: products O(k n_in), selection O(n_out log k), fitted without negative coefficients."""
    rows, products, choices = [], [], []
    for n_in in (256, 784, 2048):
        for n_out in (256, 1024, 2048):
            linear, x, dy = numbers(n_in, n_out)
            for k in (10, 40, 120):
                kept = selection.top(dy, k)
                works = [
                    lambda kept=kept, linear=linear, x=x: (
                        selection.times(kept, linear.weight), selection.t_times(kept, x),
                    ),
                    lambda dy=dy, k=k: selection.top(dy, k),
                ]  # fmt: skip
                with torch.no_grad():
                    product, choice = (t.median for t in time_interleaved(works, seconds=0.1))
                rows.append((n_in, n_out, k))
                products.append(product)
                choices.append(choice)
    n_in, n_out, k = np.array(rows, dtype=float).T
    formulas = {
        "products": (products, {"k n_in": k * n_in, "n_out n_in": n_out * n_in, "1": np.ones_like(k)}),
        "selection": (choices, {"n_out log k": n_out * np.log(k), "n_out": n_out, "k": k, "1": np.ones_like(k)}),
    }
    for what, (times, terms) in formulas.items():
        matrix, times = np.stack(list(terms.values()), 1), np.array(times)
        fitted, _ = scipy.optimize.nnls(matrix / times[:, None], np.ones_like(times))  # relative errors
        error = np.abs(matrix @ fitted / times - 1)
        coefficients = {name: float(c) * 1e6 for name, c in zip(terms, fitted, strict=True)}
        suite.add(fit=what, mean_relative_error=float(error.mean()), nanoseconds=coefficients)
    benchmark.pedantic(lambda: None, rounds=1)


def test_memory(suite, benchmark):
    """What the forward pass of l3-1024 keeps for the backward pass."""
    plain = fg.models.mlp([784, 1024, 1024, 1024, 10])
    for name, config in {"dense": None, **METHODS, "partial, k2 = 50": fg.Asymmetric.partial(40, 50)}.items():
        model = copy.deepcopy(plain)
        if config is not None:
            fg.convert_(model, config)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        held = {}

        def pack(t, weights=weights, held=held):
            if t.untyped_storage().data_ptr() not in weights:
                held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = model(torch.rand(BATCH, 784))
        suite.add(network="l3-1024", what=name, kept_kilobytes=sum(held.values()) / 1024, shape=list(y.shape))
    benchmark.pedantic(lambda: None, rounds=1)


def test_other_layers(suite, benchmark):
    """Unified top-k on sparse layers and convolutions."""
    sparse = fg.nn.SparseLinear(1000, 1000, fg.ErdosRenyi(epsilon=20))
    x, dy = torch.randn(1000, BATCH).t(), torch.randn(1000, BATCH).t()
    conv = nn.Conv2d(64, 64, 3, padding=1)
    maps = torch.randn(32, 64, 16, 16)
    for name, layer, given, grad, k in (
        ("SparseLinear 1000", sparse, x, dy, 40), ("Conv2d 64, 16 x 16", conv, maps, torch.randn_like(maps), 8),
    ):  # fmt: skip
        dense_reference = nn.Sequential(copy.deepcopy(layer))
        fg.convert_(dense_reference, fg.Asymmetric.topk(k, unified=True))
        works = []
        for module in (layer, dense_reference):
            mine = given.detach().requires_grad_()
            y, wanted = module(mine), [mine, *module.parameters()]
            works.append(lambda y=y, wanted=wanted, grad=grad: torch.autograd.grad(y, wanted, grad, retain_graph=True))
        exact, unified = (t.median for t in time_interleaved(works, seconds=0.5))
        suite.add(layer=name, k=k, exact_ms=exact, unified_ms=unified, times=exact / unified)
    benchmark.pedantic(lambda: None, rounds=1)
