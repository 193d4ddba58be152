"""Pruning: how long it takes, and how much memory, on networks of the papers."""

import resource
import time

import pytest
import torch

import filigree as fg

CASES = {  # network, input, samples, seconds asked
    "LeNet-300-100": (fg.models.lenet_300_100, (784,), 1000, 5),
    "VGG-16": (fg.models.vgg16_cifar, (3, 32, 32), 1000, 60),
}
METHODS = {
    "magnitude": fg.MagnitudePruning(0.5), "k-means": fg.ClusterPruning(0.5),
    "ward": fg.ClusterPruning(0.5, method="ward"), "subset": fg.SubsetPruning(0.5),
    "sub-clustering, quantile": fg.SubClustering(),
    "sub-clustering, HoH": fg.SubClustering(criterion="hoh"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_pruning(suite, benchmark, case):
    make, shape, samples, goal = CASES[case]
    for name, config in METHODS.items():
        torch.manual_seed(0)
        model, x = make(), torch.randn(samples, *shape)
        before = sum(p.numel() for p in model.parameters())
        began = time.perf_counter()
        fg.compress_(model, config, x)
        seconds = time.perf_counter() - began
        after = sum(p.numel() for p in model.parameters())
        assert after < before
        suite.add(
            network=case, method=name, samples=samples, seconds=seconds, goal=goal, parameters_before=before,
            parameters_after=after, peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        )  # fmt: skip
    benchmark.pedantic(lambda: None, rounds=1)
