"""Layers without weights stay dense in every topology, and the others are drawn as if those were not there."""

import pytest
import torch
from torch import nn

import filigree as fg
from filigree import topology

TOPOLOGIES = [
    fg.ErdosRenyi(epsilon=2), fg.ErdosRenyi(density=0.5, replace=True), fg.ErdosRenyiKernel(0.5), fg.ConstantFanIn(2),
    topology.Full(), topology.Empty(), fg.Paths(16, weights="sign"),
]  # fmt: skip


@pytest.mark.parametrize("kind", TOPOLOGIES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_weights_stay_dense(kind: fg.topology.Topology, masked: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 0), nn.ReLU(), nn.Linear(0, 4))
    report = str(fg.convert_(model, fg.Sparse(kind, masked=masked)))
    assert report.count("stays dense: it has no weights") == 2
    alone = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
    fg.convert_(alone, fg.Sparse(kind, masked=masked))
    assert model[0].label() == alone[0].label()
    assert model(torch.randn(3, 8)).shape == (3, 4)
