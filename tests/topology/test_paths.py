"""Networks made of paths."""

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.topology import Paths, Size


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def valences(topology, sizes, seed=0):
    """Paths through each unit, in and out, with multiplicity: counted by constant weights, which are proportional."""
    for drawn, size in zip(topology.draw_weighted(sizes, generator(seed)), sizes, strict=True):
        w = torch.zeros(size.numel)
        w[drawn.flat_indices] = 1
        yield drawn, w.view(size.out_features, size.in_features)


@pytest.mark.parametrize("sizes", [[Size(64, 32), Size(128, 64), Size(16, 128)], [Size(256, 256)] * 2])
def test_each_unit_is_visited_equally_often(sizes):
    paths = 512
    visits = [torch.zeros(sizes[0].in_features)] + [torch.zeros(s.out_features) for s in sizes]
    for points in Paths(paths)._points(len(sizes) + 2, generator()):
        for number, (count, width) in enumerate(
            zip(visits, [sizes[0].in_features, *(s.out_features for s in sizes)], strict=True)
        ):
            count += torch.bincount((points[:, number] * width).long(), minlength=width)
    for count in visits:
        assert (count == paths / len(count)).all()


def test_fan_in_and_fan_out_are_constant_where_no_edge_repeats():
    for drawn, w in valences(Paths(1024), [Size(256, 256), Size(256, 256)]):
        assert len(drawn.flat_indices) == 1024
        assert (w.sum(0) == 4).all()
        assert (w.sum(1) == 4).all()


def test_consecutive_layers_share_their_units():
    """Where few paths run, a unit with an input has an output."""
    first, second = (w for _, w in valences(Paths(20, "random"), [Size(1000, 500), Size(300, 1000)]))
    assert torch.equal(first.sum(1) > 0, second.sum(0) > 0)


def test_more_paths_than_edges_are_merged_and_said():
    model = fg.models.mlp([64, 30, 10])
    report = str(fg.convert_(model, fg.Sparse(fg.Paths(1024, weights="constant"))))
    assert "1,024 paths on 300 edges" in report
    assert "not powers of two" in report
    assert model.fc2.nnz == 300
    dense = fg.models.mlp([64, 30, 10])
    fg.convert_(dense, fg.Sparse(fg.Paths(2048)))
    assert isinstance(dense.fc2, nn.Linear)  # every edge: stays dense


@pytest.mark.parametrize("weights", ["constant", "sign"])
def test_initial_values(weights):
    model = fg.models.mlp([64, 64, 64, 8])
    fg.convert_(model, fg.Sparse(fg.Paths(512, weights=weights)))
    for layer in (model.fc1, model.fc2):
        rows = layer.dense()
        weight = rows[0].weight if isinstance(rows, nn.Sequential) else rows.weight
        torch.testing.assert_close(weight.square().sum(1), torch.full((64,), 2.0))
        if weights == "constant":
            assert (layer.values > 0).all()
        else:
            assert 0.3 < float((layer.values > 0).float().mean()) < 0.7


def test_a_sign_runs_along_a_path():
    sizes = [Size(1000, 1000), Size(1000, 1000)]
    topology = Paths(15, weights="sign")  # so few that none meet
    (points,) = topology._points(4, generator())
    for number, drawn in enumerate(topology.draw_weighted(sizes, generator())):
        for x in points:
            place = int(x[number + 1] * 1000) * 1000 + int(x[number] * 1000)
            at = drawn.flat_indices.tolist().index(place)
            assert (drawn.values[at] > 0) == (x[-1] < 0.5)


def test_channels_of_a_network_of_convolutions():
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 64, 16),
    )  # fmt: skip
    fg.convert_(model, fg.Sparse(fg.Paths(64)))
    flat_indices = model[2].flat_indices()
    assert len(flat_indices) % 9 == 0
    edges = flat_indices.view(-1, 9)
    assert torch.equal(edges, edges[:, :1] + torch.arange(9))  # the whole kernel of a pair of channels
    assert model(torch.randn(2, 4, 8, 8)).shape == (2, 16)


def test_evolution_goes_on_from_paths():
    model = fg.models.mlp([64, 128, 64, 10])
    fg.convert_(model, fg.Sparse(fg.Paths(512)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    evolution = fg.Evolution(model, optimizer, fg.Constant(0.3))
    before = model.fc1.flat_indices()
    data = fg.data.load("digits").train
    fg.fit(model, data, optimizer=optimizer, epochs=2, callbacks=evolution, progress=False)
    assert len(model.fc1.flat_indices()) == len(before)
    assert not torch.equal(model.fc1.flat_indices(), before)


def test_bad_input():
    with pytest.raises(ValueError, match="paths"):
        Paths(0)
    with pytest.raises(ValueError, match="sequence"):
        Paths(5, sequence="halton")
