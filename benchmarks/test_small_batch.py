"""Training steps at batch 2, as four of the five data sets of 001 train."""

import pytest
import torch
from networks import densified, ours

from filigree.cost import training_step
from filigree.timing import race


@pytest.mark.parametrize(
    ("name", "sizes"), [("LUNG", [3312, 1000, 1000, 1000, 5]), ("ORL", [1024, 1000, 1000, 1000, 40])]
)
def test_small_batch(name, sizes, suite, benchmark):
    model = ours(sizes)
    dense, x, y = densified(model), torch.randn(2, sizes[0]), torch.tensor([0, 1])
    torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)
    step = training_step(model, x, y)
    mine, its = race([step, training_step(dense, x, y)], seconds=2)
    suite.add(
        network=name, batch=2, ms=mine.median, dense_ms=its.median, times_dense=its.median / mine.median,
        goal=6 if name == "LUNG" else None,
    )  # fmt: skip
    benchmark.pedantic(step, rounds=50, warmup_rounds=5)
