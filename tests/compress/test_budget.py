"""What a budget measures."""

from typing import Any

import torch
from torch import nn

import filigree as fg
from filigree.calibration import Calibration
from filigree.compress.pruning.budget import _measure


class Named(nn.Linear):
    """Has an extra state that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"name": "mine"}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"name": "mine"}


def test_bytes_are_those_of_tensors_and_tied_weights_are_one() -> None:
    model, data = nn.Sequential(Named(16, 16), nn.ReLU(), nn.Linear(16, 16)), Calibration(torch.randn(50, 16))
    assert _measure("bytes", model, data) == 4 * sum(p.numel() for p in model.parameters())
    model[2].weight = model[0].weight
    assert _measure("bytes", model, data) == 4 * (16 * 16 + 16 + 16)


def test_a_budget_of_bytes_with_an_extra_state() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16), Named(16, 4)), torch.randn(50, 16)
    fg.compress_(model, fg.MagnitudePruning(keep=fg.Budget(bytes=0.5)), x, progress=False)
    assert 4 * sum(p.numel() for p in model.parameters()) <= 0.5 * 4 * (17 * 64 + 65 * 16 + 17 * 4)
