import pytest
import torch
from torch import nn

import filigree as fg


@pytest.mark.parametrize("masked", [False, True])
def test_sparse_weights_decay_as_dense_ones(masked):
    model = nn.Sequential(nn.Linear(40, 60), nn.LayerNorm(60), nn.ReLU(), nn.Linear(60, 60), nn.Linear(60, 5))
    model[4].weight = nn.Parameter(torch.randn(5, 60))
    dense = fg.nn.decay_groups(model, 0.1)
    assert [sum(p.numel() for p in group["params"]) for group in dense] == [40 * 60 + 60 * 60 + 300, 60 + 120 + 60 + 5]
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.1), masked=masked))
    model[0].bias.requires_grad_(False)
    decaying, others = fg.nn.decay_groups(model, 0.1)
    layers = [module for module in model if hasattr(module, "connections")]
    assert layers
    assert all(any(p is layer.connections for p in decaying["params"]) for layer in layers)
    assert {id(p) for p in (*decaying["params"], *others["params"])} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    assert all(p.ndim == 1 for p in others["params"])
    before = [p.detach().clone() for p in decaying["params"]]
    optimizer = torch.optim.SGD([decaying, others], lr=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(decaying["params"], before, strict=True):
        torch.testing.assert_close(p.detach(), old * (1 - 0.5 * 0.1))
