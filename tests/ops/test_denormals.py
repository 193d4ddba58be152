import pytest
import torch

from filigree.measure.timing import time_interleaved


@pytest.mark.parametrize("flushed", [False, True])
def test_measurements_leave_denormals_as_the_user_has_them(flushed):
    torch.set_flush_denormal(flushed)
    try:
        time_interleaved([lambda: None], 0.001)
        assert (torch.tensor(1e-310, dtype=torch.float64) * 1 == 0) == flushed
    finally:
        torch.set_flush_denormal(False)
