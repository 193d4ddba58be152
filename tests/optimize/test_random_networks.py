"""Random convolutional networks: what is laid out equals them in every form, for other batches, by any chunk."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from filigree.optimize.graphs import graph_of, plans_of
from filigree.optimize.int8_errors import Int8Errors
from filigree.optimize.tracing import Traced

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.PReLU, nn.LeakyReLU, nn.Tanh,
)  # fmt: skip
POOLS = (
    nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2), nn.AvgPool2d(2, ceil_mode=True), nn.MaxPool2d(3, 1, 1),
    nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AdaptiveAvgPool2d((3, None)),
)  # fmt: skip


def conv(rng, c, out, **settings):
    return nn.Conv2d(c, out, rng.choice([1, 3, (3, 1)]), rng.choice([1, 1, 2]), rng.choice([0, 1]), **settings)


def group(rng, c):
    groups = rng.choice([d for d in range(1, c + 1) if c % d == 0])
    return nn.Conv2d(c, groups * rng.choice([1, 2, 3, 4, 8, 16]), 3, padding=1, groups=groups)


def norm(rng, c):
    batch_norm = nn.BatchNorm2d(c)
    batch_norm.running_mean.normal_()
    batch_norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(batch_norm.weight)
    return batch_norm


def shuffled(rng, c):
    groups = rng.choice([d for d in range(1, c + 1) if c % d == 0])
    return lambda m, x: x.unflatten(1, (groups, c // groups)).transpose(1, 2).flatten(1, 2)


def exchanged(rng, c):
    first = rng.randint(0, c)
    return lambda m, x: torch.cat([F.relu(x[:, first:]), x[:, :first]], 1)


def scaled(rng, c):
    function, number = rng.choice([torch.add, torch.sub, torch.mul, torch.div]), rng.choice([0.5, 2, -1.5])
    return lambda m, x: function(x, number)


def dense(rng, c):
    """Parts that two concatenations read, through one activation and through two."""

    def function(m, x):
        y = F.relu(m(x))
        z = F.hardswish(F.gelu(m(y))) + F.max_pool2d(torch.cat([x, y], 1), 3, 1, 1)[:, c:]
        return torch.cat([x, y, z], 1)

    return function


def nested(rng, c):
    order = rng.sample(range(3), 3)

    def function(m, x):
        y = m(x)
        inner = torch.cat([F.relu(y), m(y)], 1)
        parts = [inner[:, :c], inner, F.avg_pool2d(x, 3, 1, 1, count_include_pad=True) + y]
        return torch.cat([parts[i] for i in order], 1)[:, c:]

    return function


MODULES = {  # by a random generator and a number of channels
    "convolution": lambda rng, c: conv(rng, c, rng.choice([1, 4, 7, 16, 17, 32, 33])),
    "depthwise": lambda rng, c: conv(rng, c, c, groups=c, bias=rng.random() < 0.5),
    "groups": group,
    "norm": norm,
    "activation": lambda rng, c: rng.choice(ACTIVATIONS)(),
    "pool": lambda rng, c: rng.choice(POOLS),
}
FUNCTIONS = {  # of a module that keeps the size, and x
    "sum": lambda rng, c: lambda m, x: x + m(x),
    "product": lambda rng, c: lambda m, x: m(x) * x,
    "difference": lambda rng, c: lambda m, x: x - m(-x),
    "gate": lambda rng, c: lambda m, x: x * m(x.mean((2, 3), keepdim=True)).sigmoid(),
    "more": lambda rng, c: lambda m, x: torch.cat([m(x), x, m(x)], 1),
    "dense": dense,
    "nested": nested,
    "constant": lambda rng, c: lambda m, x: m.bias[:, None, None] * x - m.bias.view(1, -1, 1, 1),
    "by function": lambda rng, c: lambda m, x: F.relu(F.conv2d(x, m.weight * 2, m.bias)),
    "tokens": lambda rng, c: lambda m, x: (m.bias + F.linear(x.movedim(1, -1), m.weight.flatten(1))).movedim(-1, 1),
    "layer norm": lambda rng, c: lambda m, x: F.layer_norm(x.movedim(1, -1), (x.shape[1],), m.bias).movedim(-1, 1),
    "larger": lambda rng, c: lambda m, x: F.interpolate(x, scale_factor=1.5),
    "shuffled": shuffled,
    "exchanged": exchanged,
    "scaled": scaled,
}


class Network(nn.Module):
    def __init__(self, rng):
        super().__init__()
        self.channels = channels = rng.choice([1, 3, 5, 16])
        self.layers, self.functions = nn.ModuleList(), []
        for _ in range(rng.randint(3, 9)):
            name = rng.choice([*MODULES, *FUNCTIONS])
            if name in MODULES:
                layer, function = MODULES[name](rng, channels), None
                channels = getattr(layer, "out_channels", channels)
            else:
                layer, function = nn.Conv2d(channels, channels, 1), FUNCTIONS[name](rng, channels)
                channels *= 3 if name in ("more", "dense", "nested") else 1
            self.layers.append(layer)
            self.functions.append(function)
        self.end = rng.choice([lambda x: x, lambda x: x.mean((2, 3)), lambda x: x.flatten(1), torch.sigmoid])

    def forward(self, x):
        for layer, function in zip(self.layers, self.functions, strict=True):
            x = layer(x) if function is None else function(layer, x)
        return self.end(x)


@pytest.mark.parametrize("first", [0, *(pytest.param(i, marks=pytest.mark.long("many")) for i in range(20, 200, 20))])
@torch.no_grad()
def test_random_networks(isa, first):
    tried = 0
    for seed in range(first, first + 20):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        model, sizes = Network(rng).eval(), (rng.choice([7, 12]), rng.choice([6, 9]))
        x = torch.randn(5, model.channels, *sizes)
        try:
            expected = model(x)
        except RuntimeError:  # nothing is left of the image
            continue
        traced = Traced(model, [x[:2]])
        plans = plans_of(traced, set(), Int8Errors(traced, 0))
        drafts = [draft for plan in plans for draft in plan.drafts if draft.layer is not None]
        for form in ("floats", "bitmap", "tiles", "rows"):
            for draft in drafts:
                draft.form = form if form in draft.forms else "floats"
            graph = graph_of(traced, plans, chunk=2)
            for batch in (1, 2, 5):
                close = {"rtol": 1e-4, "atol": 1e-5 * float(1 + expected.abs().max())}
                torch.testing.assert_close(graph(x[:batch]), expected[:batch], **close)
        tried += bool(drafts)
    assert tried > 8
