"""Pruning: how long it takes, and how much memory, on networks of the papers and of other people.

`FILIGREE_NETWORKS="CREPE (full)"` tries these; the rows of others stay as they are recorded.
"""

import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.compress.pruning.moments import MEMORY
from filigree.nn.resizing import has_units


def vgg16():
    """VGG-16 (Simonyan and Zisserman 2015) for images of 224 x 224 pixels, random weights of He et al. (2015)."""
    layers, channels = [], 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers += [
        nn.Flatten(),
        nn.Linear(512 * 49, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, 1000),
    ]
    model = nn.Sequential(*layers)
    for layer in model:
        if has_units(layer):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model


def crepe():
    """The shape of CREPE, full (Kim et al. 2018): 1,024 samples of sound to 360 pitches; its second kernel has 65,536
    columns."""
    widths, layers = [1, 1024, 128, 128, 128, 256, 512], [nn.Unflatten(1, (1, 1024, 1))]
    for i in range(6):
        kernel, stride, padding = (512, 4, (0, 0, 254, 254)) if i == 0 else (64, 1, (0, 0, 31, 32))
        layers += [
            nn.ZeroPad2d(padding), nn.Conv2d(widths[i], widths[i + 1], (kernel, 1), (stride, 1)), nn.ReLU(),
            nn.BatchNorm2d(widths[i + 1]), nn.MaxPool2d((2, 1)),
        ]  # fmt: skip
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 360))


def tones(samples):
    """Windows of sounds of two tones."""
    pitch = 60 * (1000 / 60) ** torch.rand(2, samples, 1)
    return torch.sin(2 * torch.pi * pitch * torch.arange(1024) / 16000).sum(0) + 0.1 * torch.randn(samples, 1024)


def images(samples):
    """Random 7 x 7 images, made smooth."""
    return nn.functional.interpolate(torch.randn(samples, 3, 7, 7), size=(224, 224), mode="bilinear")


ALL = {
    "magnitude": fg.MagnitudePruning(0.5), "k-means": fg.ClusterPruning(0.5),
    "ward": fg.ClusterPruning(0.5, method="ward"), "subset": fg.SubsetPruning(0.5),
    "sub-clustering, quantile": fg.SubClustering(),
    "sub-clustering, HoH": fg.SubClustering(criterion="hoh"),
}  # fmt: skip
SUBSET = {"subset": ALL["subset"]}
CASES = {  # network, inputs, seconds asked
    "LeNet-300-100": (fg.models.lenet_300_100, lambda: torch.randn(1000, 784), 5, ALL),
    "VGG-16": (fg.models.vgg16_cifar, lambda: torch.randn(1000, 3, 32, 32), 60, ALL),
    "VGG-16, 224 x 224": (vgg16, lambda: images(32), None, SUBSET),
    "CREPE (full)": (crepe, lambda: tones(200), None, SUBSET),
}
CHOSEN = os.environ.get("FILIGREE_NETWORKS", ";".join(CASES)).split(";")


@pytest.mark.parametrize("case", [case for case in CASES if case in CHOSEN])
def test_pruning(suite, benchmark, case):
    make, inputs, goal, methods = CASES[case]
    suite.networks = list(CASES)
    for name, config in methods.items():
        torch.manual_seed(0)
        model, x = make().eval(), inputs()
        parameters, layers = _parameters(model), sum(map(has_units, model.modules()))
        began = time.process_time()
        with torch.no_grad():
            for part in x.split(8):
                model(part)
        one_pass = time.process_time() - began
        resident = _gigabytes("VmRSS", reset=True)
        began = time.process_time()
        fg.compress_(model, config, x)
        seconds = time.process_time() - began
        assert _parameters(model) < parameters
        suite.add(
            network=case, method=name, samples=len(x), seconds=seconds, goal=goal, seconds_a_layer=seconds / layers,
            one_pass_seconds=one_pass, parameters_before=parameters, parameters_after=_parameters(model),
            resident_gb=resident, peak_gb=_gigabytes("VmHWM"), bound_gb=1.25 * MEMORY / 2**30,
        )  # fmt: skip
    suite.save()
    benchmark.pedantic(lambda: None, rounds=1)


def _parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def _gigabytes(key, reset=False):
    """The process's memory now (`VmRSS`) or at most (`VmHWM`) since it was last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 2**20
