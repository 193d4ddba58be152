"""Programs in C that learn with convolutions, in pieces, in little memory: against torch."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from test_c import close, sparse_layer, steps_in_c, steps_in_torch
from test_c_properties import WARNINGS, needs_compiler
from torch import nn

from filigree.export.c.compiler import compiler
from filigree.export.c.export_c import export_c

pytestmark = [needs_compiler, pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")]


def learner(kind):
    """A network with each kind of layer and window, and its input's shape."""
    if kind == "labels":
        model = nn.Sequential(
            nn.Conv2d(2, 4, (2, 3), padding="same"), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, groups=2, bias=False), nn.Tanh(),
            nn.AvgPool2d(2, 1, 1), nn.Flatten(), nn.Linear(144, 8), nn.LeakyReLU(0.1), nn.Linear(8, 4),
        )  # fmt: skip
        return model, (2, 11, 8)
    model = nn.Sequential(
        nn.AvgPool2d(2, padding=1, count_include_pad=False), nn.Conv2d(1, 3, 2, padding=2, dilation=2), nn.Sigmoid(),
        nn.MaxPool2d(2, ceil_mode=True), nn.Hardtanh(), nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(),
        sparse_layer(5, 6, *((i % 5, i * 5 % 6) for i in range(15))), nn.Tanh(), nn.Linear(5, 4),
    )  # fmt: skip
    return model, (1, 7, 9)


@pytest.mark.parametrize("kind", ["labels", "targets"])
def test_convolutions_learn_as_in_torch(tmp_path, kind):
    torch.manual_seed(0)
    (model, shape), mse = learner(kind), kind == "targets"
    x = torch.randn(20, 16, *shape)
    x[:, :, :, :4, :4] = 1.0  # windows of equal numbers
    options = {"loss": "mse", "momentum": 0.0} if mse else {"weight_decay": 0.01, "nesterov": True}
    path = tmp_path / "m.c"
    report = export_c(model, path, x[0], training=True, batch=16, **options)
    assert {layer.what.split()[0] for layer in report.layers} == {
        "convolution", "max", "linear", "padded" if kind == "labels" else "average"
    }  # fmt: skip
    for command in (["cc", "-std=c99"], ["g++", "-x", "c++", "-std=c++17"]):
        if shutil.which(command[0]):
            subprocess.run([*command, *WARNINGS, "-fsyntax-only", path], check=True)
    rate = 0.5 if mse else 0.02
    batches = [(x[i], torch.randn(16, 4) if mse else torch.randint(4, (16,))) for i in range(10)] * 2
    batches[3] = tuple(part[:5] for part in batches[3])
    losses, weights, *_ = steps_in_c(compiler(), path, batches, rate, mse=mse, momentum=not mse, sparse=mse)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    options.pop("loss", None)
    optimizer = torch.optim.SGD(model.parameters(), rate, **{"momentum": 0.9, **options})
    close(losses, torch.from_numpy(steps_in_torch(model, batches, optimizer, mse)))
    ours = [weights[name] for name in weights.dtype.names if not name.endswith(("columns", "starts"))]
    for numbers, parameter, before in zip(ours, model.parameters(), start, strict=True):
        close(numbers, parameter)
        assert (parameter - before).abs().max() > 0.005
    assert report.ram_bytes > 4 * 16 * np.prod(shape)  # activations of a batch
