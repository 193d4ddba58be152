"""Inference without gradients, one sample and a batch of 128, against dense."""

import pytest
import torch
from networks import SIZES, densified, ours

from filigree.measure.timing import inference, time_interleaved


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("batch", [1, 128])
def test_inference(name, batch, suite, benchmark):
    model = ours(SIZES[name]).eval()
    dense, x = densified(model).eval(), torch.randn(batch, SIZES[name][0])
    torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)
    sparse_time, dense_time = time_interleaved([inference(model, x), inference(dense, x)], seconds=2)
    suite.add(
        network=name, batch=batch, ms=sparse_time.median, dense_ms=dense_time.median,
        times_dense=dense_time.median / sparse_time.median,
        goal=5 if (name, batch) == ("3 x 1000", 1) else None,
    )  # fmt: skip
    benchmark.pedantic(inference(model, x), rounds=50, warmup_rounds=5)
