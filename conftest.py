"""Shared by all tests: one seed, and the place of the real data."""

import os
import sys
from pathlib import Path

import pytest
import torch

from filigree.ops import kernels

for tests in ("tests", "papers/tests"):  # what several tests share, such as tests/contract.py
    sys.path.insert(0, str(Path(__file__).parent / tests))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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
