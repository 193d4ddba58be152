"""Refits of layers that add to a residual stream: what the stream has lost before is made up for."""

import copy

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.compress.pruning import unit_pruning
from filigree.compress.pruning.streams import Streams


class Residual(nn.Module):
    """Blocks that add to a stream, in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(8, 24, 1), nn.Tanh(), nn.Conv1d(24, 8, 1), nn.Dropout()
            )
            for _ in range(3)
        )  # fmt: skip
        self.in_place = in_place

    def forward(self, x):
        for block in self.blocks:
            y = block(x)
            if self.in_place:
                y += x
                x = y
            else:
                x = x + y
        return x


def samples(count, seed):
    """Sequences that fill two of eight directions."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(2, 8, generator=torch.Generator().manual_seed(9))
    return (torch.randn(count, 16, 2, generator=generator) @ basis).transpose(1, 2)


def network(in_place):
    torch.manual_seed(0)
    return Residual(in_place).eval()


def error(small, model, x):
    with torch.no_grad():
        y, z = model(x), small(x)
    return float((z - y).norm() / (y - y.mean(0)).norm())


def pruned(model, config, x, monkeypatch):
    """The model pruned with streams made up for (True), and without (False)."""
    networks = {}
    for watched in (True, False):
        networks[watched] = copy.deepcopy(model)
        if not watched:
            monkeypatch.setattr(unit_pruning.Streams, "watch", lambda *_: None)
        fg.compress_(networks[watched], config, x)
    return networks


PRUNE = fg.MagnitudePruning(keep={"blocks.0.0": 0.25, "*": 1.0}, measure=False)  # the second block is whole


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_later_layers_make_up_for_what_the_stream_has_lost(in_place, chunked, monkeypatch):
    model, x = network(in_place), samples(256, 1)
    networks = pruned(model, PRUNE, list(x.split(64)) if chunked else x, monkeypatch)
    errors = {watched: error(small, model, samples(200, 2)) for watched, small in networks.items()}
    assert errors[True] < 0.7 * errors[False]


class OnItself(Residual):
    """The last block is a single layer that reads the stream which its output is added to in place."""

    def __init__(self, in_place):
        super().__init__(in_place)
        self.blocks = self.blocks[:1]
        self.own = nn.Conv1d(8, 8, 1)

    def forward(self, x):
        x = x + self.blocks[0](x)
        x += self.own(x)
        return x


class Twice(Residual):
    """The second block's output is added to two streams."""

    def __init__(self, in_place):
        super().__init__(in_place)
        self.blocks = self.blocks[:2]

    def forward(self, x):
        z = x + self.blocks[0](x)
        y = self.blocks[1](z)
        return torch.cat([z + y, x + y], 1)


@pytest.mark.parametrize("kind", [OnItself, Twice])
def test_sums_that_overwrite_what_a_layer_read_and_second_sums(kind, monkeypatch):
    torch.manual_seed(0)
    model = kind(in_place=True).eval()
    networks = pruned(model, PRUNE, samples(256, 1), monkeypatch)
    errors = {watched: error(small, model, samples(200, 2)) for watched, small in networks.items()}
    assert errors[True] < errors[False]


def test_a_stream_that_loses_units_itself_is_not_made_up_for(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(8, 8, 1), network(False), nn.Conv1d(8, 3, 1)).eval()
    x = samples(256, 1)
    networks = pruned(model, fg.MagnitudePruning(keep=0.5, measure=False), x, monkeypatch)
    assert networks[True][0].out_channels == 4
    assert networks[True](x).equal(networks[False](x))


def sums(forward, *layers):
    """Which layers' outputs are added to something, and to what."""
    seen = []
    streams = Streams(lambda name, stream: seen.append((name, stream.clone())))
    handles = [
        layer.register_forward_hook(lambda _, __, y, name=name: streams.watch(name, y))
        for name, layer in enumerate(layers)
    ]
    with torch.no_grad(), streams:
        forward()
    for handle in handles:
        handle.remove()
    return seen


def test_what_is_added_to_a_stream():
    x, layer, other = torch.randn(5, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    for forward in (lambda: x + layer(x), lambda: layer(x) + x, lambda: layer(x).add_(x)):
        ((name, stream),) = sums(forward, layer)
        assert name == 0
        assert torch.equal(stream, x)
    ((_, stream),) = sums(lambda: x.clone().add_(layer(x)), layer)
    assert torch.equal(stream, x)  # as it was before the sum took its place
    # of two the later one is added to what the earlier one gave
    assert [name for name, _ in sums(lambda: layer(x) + other(x), layer, other)] == [1]
    assert [name for name, _ in sums(lambda: other(x) + layer(x), layer, other)] == [0]


@pytest.mark.parametrize("changed", [
    lambda y, x: y + y.relu(), lambda y, x: y + y, lambda y, x: y.relu_() + x, lambda y, x: y.tanh() + x,
    lambda y, x: y + 1, lambda y, x: torch.add(y, x, alpha=2), lambda y, x: y + x[:1], lambda y, x: y + (x * 2),
])  # fmt: skip
def test_what_is_no_stream(changed):
    """What depends on the output, has another shape, or was not there before it; outputs that something has changed."""
    x, layer = torch.randn(5, 4), nn.Linear(4, 4)
    assert not sums(lambda: changed(layer(x), x), layer)
    assert not sums(lambda: x + nn.BatchNorm1d(4).eval()(layer(x)), layer)
