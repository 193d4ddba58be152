import pytest

from filigree.measure.timing import Timing
from filigree.optimize import optimization


@pytest.fixture
def faster(monkeypatch):
    """Whatever is timed, the last work is the fastest."""

    def times(works, seconds, beyond=0.0):
        for work in works:
            work()
        return [Timing(float(len(works) - i), 0.0, 0.0) for i in range(len(works))]

    monkeypatch.setattr(optimization, "time_interleaved", times)
