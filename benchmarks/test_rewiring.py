"""The share of rewiring in an epoch of Fashion-MNIST (600 steps of 100) with 3 x 1000."""

import copy

import torch
from networks import SIZES, ours

import filigree as fg
from filigree.measure.timing import time_interleaved


def test_rewiring(suite, benchmark):
    model = ours(SIZES["3 x 1000"])
    x, y = torch.randn(100, 784), torch.randint(0, 10, (100,))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)
    evolution = fg.Evolution(model, optimizer, 0.3, regrow="initial")

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()
    before = {name: layer.nnz for name, layer in evolution.layers.items()}
    dense_reference = copy.deepcopy(model)
    rewire, train = time_interleaved([evolution.step, step], seconds=3)
    assert {name: layer.nnz for name, layer in evolution.layers.items()} == before
    assert not torch.equal(dense_reference.fc1.indices, model.fc1.indices)
    share = rewire.median / (rewire.median + 600 * train.median)
    suite.add(rewire_ms=rewire.median, step_ms=train.median, share_of_epoch=share, goal=0.03)
    benchmark.pedantic(evolution.step, rounds=10)
