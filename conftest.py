"""Shared by all tests: one seed, the place of the real data, tests that take long, and several processes of them."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from filigree.ops import kernels

for tests in ("tests", "papers/tests"):  # what several tests share, such as tests/contract.py
    sys.path.insert(0, str(Path(__file__).parent / tests))


def pytest_configure(config):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has its share of the cores, and what it starts too
        threads = max(1, len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        torch.set_num_threads(threads)


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("long"):
            if not (len(mark.args) == 1 and isinstance(mark.args[0], str) and mark.args[0]):
                raise pytest.UsageError(f"{item.nodeid}: pytest.mark.long needs its reason.")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads():
    """A test that asks for more threads leaves none of them: workers with more than their share wait for each other."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _signals():
    """The command line has handlers of its own; after each test the ones of before are back, so that order is free."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _compiled():
    """What torch.compile has kept is forgotten after each test: it gives up a function that was compiled too often."""
    yield
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()


@pytest.fixture
def data_root():
    root = os.environ.get("FILIGREE_DATA")
    if not root:
        pytest.skip("FILIGREE_DATA is not set: the real data sets are absent")
    return Path(root)


@pytest.fixture(params=kernels.isas())
def isa(request):
    """Each instruction set of this machine in turn."""
    before = kernels.isa()
    kernels.set_isa(request.param)
    yield request.param
    kernels.set_isa(before)
