"""Shared by all tests: one seed, and the place of the real data."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # tests/contract.py


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def data_root():
    root = os.environ.get("FILIGREE_DATA")
    if not root:
        pytest.skip("FILIGREE_DATA is not set: the real data sets are absent")
    return Path(root)
