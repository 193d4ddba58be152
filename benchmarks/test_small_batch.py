"""Training steps at batch 2, as four of the five data sets of Chouliaras 2021 train."""

import pytest
import torch
from networks import densified, ours

import filigree as fg
from filigree.measure.cost import training_step
from filigree.measure.timing import time_interleaved


@pytest.mark.parametrize(
    ("name", "sizes"), [("LUNG", [3312, 1000, 1000, 1000, 5]), ("ORL", [1024, 1000, 1000, 1000, 40])]
)
def test_small_batch(name, sizes, suite, benchmark):
    model = ours(sizes)
    dense, x, y = densified(model), torch.randn(2, sizes[0]), torch.tensor([0, 1])
    torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)
    step = training_step(model, x, y)
    sparse_time, dense_time = time_interleaved([step, training_step(dense, x, y)], seconds=2)
    suite.add(
        network=name, batch=2, ms=sparse_time.median, dense_ms=dense_time.median,
        times_dense=dense_time.median / sparse_time.median,
        goal=6 if name == "LUNG" else None,
    )  # fmt: skip
    benchmark.pedantic(step, rounds=50, warmup_rounds=5)


def test_overhead(suite, benchmark):
    """What a layer costs beyond its kernels, in a step: tiny layers, which compute next to nothing. Goal: 50 us."""
    x, y = torch.randn(16, 8), torch.randint(0, 10, (16,))
    models = [fg.models.mlp([8] * depth + [10]) for depth in (10, 30)]
    for model in models:
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    few, many = (training_step(model, x, y) for model in models)
    a, b = time_interleaved([few, many], seconds=2)
    suite.add(microseconds_a_layer=(b.median - a.median) / 20 * 1e3, goal=50)
    benchmark.pedantic(few, rounds=50, warmup_rounds=5)
