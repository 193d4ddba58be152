"""Operations between two layers: each is part of one call, and equals torch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import filigree as fg
from filigree.optimize.graphs import graph_of, plans_of
from filigree.optimize.int8_errors import Int8Errors
from filigree.optimize.tracing import Traced


class Between(nn.Module):
    """Two layers and a function of the model and the numbers between them."""

    def __init__(self, first, function, last):
        super().__init__()
        self.first, self.function, self.last = first, function, last
        self.p, self.q = nn.Parameter(torch.rand(20, 1, 1) + 1), nn.Parameter(torch.randn(48))
        self.weight, self.pixels = nn.Parameter(torch.randn(20, 5, 3, 3)), nn.Parameter(torch.randn(20, 20))

    def forward(self, x):
        return self.last(self.function(self, self.first(x)))


def is_taken_whole(model, x):
    with torch.no_grad():
        traced = Traced(model.eval(), [x[:2]])
        plans = plans_of(traced, set(), Int8Errors(traced, 0))
        assert len(plans) == 1
        graph = graph_of(traced, plans, chunk=2)
        assert len([node for node in graph.graph.nodes if node.op.startswith("call")]) == 1
        for batch in (1, 2, len(x)):
            torch.testing.assert_close(graph(x[:batch]), model(x[:batch]), rtol=1e-4, atol=1e-5)


POOLS = [
    nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(2, 2, ceil_mode=True),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    nn.AvgPool2d((3, 2), (2, 1), (1, 1), ceil_mode=True, count_include_pad=False),
    nn.AvgPool2d(2, divisor_override=3), nn.AvgPool2d(3, 2, 1, divisor_override=-2), nn.AvgPool2d(1),
    nn.AdaptiveAvgPool2d((3, 4)), nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d(9), nn.AdaptiveAvgPool2d(1),
]  # fmt: skip


@pytest.mark.parametrize("sizes", [(7, 8), (6, 5)])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_means_over_windows(isa, pool, sizes):
    is_taken_whole(nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), pool, nn.Conv2d(20, 4, 1)), torch.randn(5, 3, *sizes))


OF_IMAGES = {
    "adaptive, by function": lambda m, y: F.adaptive_avg_pool2d(y, (2, 3)) + F.avg_pool2d(y, (3, 3), 2, 0)[:, :, :2],
    "a number first": lambda m, y: 0 + 2 * y,
    "a parameter first": lambda m, y: m.p * (m.p + y),
    "zero plus, in place": lambda m, y: sum([y, F.relu(y), -y]),
    "a difference": lambda m, y: F.relu(y) - y,
    "a difference from a gate": lambda m, y: y - y.mean((2, 3), keepdim=True),
    "negative": lambda m, y: torch.neg(F.relu(y)),
    "a product with a factor that is computed": lambda m, y: (m.p * 2 + 1) * y - m.p,
    "a convolution by function": lambda m, y: F.relu(F.conv2d(y, m.weight, None, 1, "same", groups=4)),
    "one with a weight that is computed": lambda m, y: F.conv2d(y, m.weight / m.weight.norm(), stride=2, groups=4),
    "a linear layer by function": lambda m, y: F.linear(y.movedim(1, -1), m.pixels, m.p[:, 0, 0]).movedim(-1, 1),
}


@pytest.mark.parametrize("name", OF_IMAGES)
def test_images(isa, name):
    model = Between(nn.Conv2d(3, 20, 3, padding=1), OF_IMAGES[name], nn.Conv2d(20, 4, 1))
    is_taken_whole(model, torch.randn(5, 3, 7, 8))


OF_TOKENS = {
    "a scale": lambda m, y: m.q * y,
    "a scale and a shift, read twice": lambda m, y: (y * m.q - m.q) + y,
    "a number": lambda m, y: 1 + F.layer_norm(y, (48,)) / 2,
    "negative": lambda m, y: -F.gelu(y),
    "a difference": lambda m, y: y - F.gelu(y),
}


@pytest.mark.parametrize("name", OF_TOKENS)
def test_tokens(isa, name):
    is_taken_whole(Between(nn.Linear(6, 48), OF_TOKENS[name], nn.Linear(48, 4)), torch.randn(5, 7, 6))


def test_the_report_names_layers_that_are_called_by_function():
    class Head(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight, self.bias)

    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Sequential(Head(64, 32)), nn.ReLU(), Head(32, 4)).eval()
    report = fg.optimize_(model, torch.randn(4, 6), seconds=0.001)
    assert [layer.name for layer in report.layers] == ["0", "2.0", "4"]
    assert "Linear(64, 32)" in str(report)
