"""Dropout by partitions (Keller et al.)."""

import copy

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.nn import PartitionedConnect, PartitionedDropout
from filigree.ops.rows import rows_linear


@pytest.mark.parametrize("per", ["unit", "element"])
@pytest.mark.parametrize("shape", [(7, 50), (3, 12, 4, 4), (2, 5, 30), (40,)])
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_every_place_is_dropped_once_in_a_round(shape, per, parts):
    layer, x = PartitionedDropout(parts, per), torch.ones(shape)
    for _ in range(3):
        dropped = sum((layer(x) == 0).int() for _ in range(parts))
        assert bool((dropped == 1).all())
    places = x.numel() if per == "element" else layer.partition.numel()
    assert layer.drawn == 3 * places  # a P-th of what dropout draws
    kept = layer(x)
    torch.testing.assert_close(kept[kept != 0].unique(), torch.tensor([parts / (parts - 1)]))
    assert layer.eval()(x) is x


def test_units_are_features_and_channels():
    flat = PartitionedDropout(3)(torch.ones(5, 40))
    assert bool((flat == flat[0]).all())
    maps = PartitionedDropout(3)(torch.ones(5, 40, 6, 6))
    assert bool((maps == maps[:1, :, :1, :1]).all())
    assert 0 < int((maps[0, :, 0, 0] == 0).sum()) < 40


def test_the_expectation_stays_and_the_variance_falls():
    torch.manual_seed(0)
    x = torch.rand(200)
    means = {}
    for name, layer in (("partition", PartitionedDropout(4, "element")), ("dropout", nn.Dropout(0.25))):
        sums = torch.stack([torch.stack([layer(x).sum() for _ in range(4)]).mean() for _ in range(300)])
        means[name] = sums
    assert abs(means["partition"].mean() - x.sum()) < 0.02 * x.sum()
    assert means["partition"].std() < 0.05 * means["dropout"].std()  # over a whole round it is exact


def test_gradients_and_resuming():
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, 2))
    report = fg.convert_(model, fg.PartitionDropout(parts=5))
    assert report.changes[0].after == "PartitionedDropout(5)"
    layer, x = model[2], torch.randn(4, 30, requires_grad=True)
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (y != 0).float() * 1.25)
    layer(x)
    again = PartitionedDropout(5)
    again.load_state_dict(layer.state_dict())
    for _ in range(3):
        assert torch.equal(again(x), layer(x))
    elements, its = PartitionedDropout(5, "element"), PartitionedDropout(5, "element")
    y = elements(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (y != 0).float() * 1.25)
    its.load_state_dict(elements.state_dict())
    for _ in range(9):
        (torch.manual_seed(7), elements(x), torch.manual_seed(7))
        its(x)
    torch.manual_seed(8)
    y = elements(x)
    torch.manual_seed(8)
    assert torch.equal(its(x), y)


def test_connect():
    model = nn.Sequential(nn.Linear(6, 30))
    plain = model[0]
    fg.convert_(model, fg.PartitionDropout(4, connect=True))
    layer = model[0]
    assert isinstance(layer, PartitionedConnect)
    x = torch.randn(5, 6)
    mean = torch.stack([layer(x) for _ in range(4)]).mean(0)
    torch.testing.assert_close(mean, plain(x))  # each weight was out once
    torch.testing.assert_close(layer.eval()(x), plain(x))
    torch.testing.assert_close(layer.dense()(x), plain(x))


def test_save_and_load(tmp_path):
    model = fg.models.mlp([6, 30, 2], dropout=0.5)
    fg.convert_(model, fg.PartitionDropout(3))
    model(torch.randn(4, 6))
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors")
    assert torch.equal(again.state_dict()["dropout1.partition"], model.state_dict()["dropout1.partition"])


@pytest.mark.parametrize("parts", [1, 0, -2])
def test_bad_parts_are_named(parts):
    with pytest.raises(ValueError, match="parts must be at least 2"):
        PartitionedDropout(parts)
    with pytest.raises(ValueError, match="parts must be greater than or equal to 2"):
        fg.PartitionDropout(parts)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("fuse", [False, True])
def test_dropped_rows_are_not_computed(sparse, fuse):
    torch.manual_seed(0)
    model = fg.models.mlp([12, 40, 30, 5], dropout=0.5)
    if sparse:
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.4), fuse=fuse), where=["fc1", "fc2"])
    whole = copy.deepcopy(model)  # the same dropout behind layers that compute everything
    report = fg.convert_(model, fg.PartitionDropout(3))
    assert "not computed" in str(report)
    assert [type(m).__name__.startswith("Partitioned") for m in (model.fc1, model.fc2, model.fc3)] == [1, 1, 0]
    for name in ("dropout1", "dropout2"):
        setattr(whole, name, copy.deepcopy(getattr(model, name)))
    x = torch.randn(7, 12)
    for _ in range(4):
        mine, its = x.clone().requires_grad_(), x.clone().requires_grad_()
        for name in ("dropout1", "dropout2"):
            getattr(whole, name).load_state_dict(getattr(model, name).state_dict())
            getattr(model, name).kept_now((40 if name == "dropout1" else 30,), x)
            getattr(whole, name).load_state_dict(getattr(model, name).state_dict())
        y, expected = model(mine), whole(its)
        torch.testing.assert_close(y, expected)
        dy = torch.randn_like(y)
        got = torch.autograd.grad(y, [mine, *model.parameters()], dy)
        for g, e in zip(got, torch.autograd.grad(expected, [its, *whole.parameters()], dy), strict=True):
            torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)
    seen = []
    model.relu1.register_forward_hook(lambda m, a, y: seen.append(a[0]))
    model(x)
    model.relu1._forward_hooks.clear()
    if not (sparse and fuse):
        dropped = model.dropout1.partition == model.dropout1.step - 1
        assert dropped.sum() > 4  # of 40 rows, a third on average
        assert bool((seen[0][:, dropped] == 0).all())
    torch.testing.assert_close(model.eval()(x), whole.eval()(x))


@pytest.mark.parametrize("relu", [False, True])
def test_gradcheck_of_chosen_rows(isa, relu):
    torch.manual_seed(1)
    layer = fg.nn.SparseLinear(9, 14, fg.ErdosRenyi(density=0.5), relu=relu, dtype=torch.float64)
    rows = torch.tensor([0, 3, 4, 9, 13])
    x = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    for chosen in (rows, rows[:0], torch.arange(14)):
        assert torch.autograd.gradcheck(
            lambda v, b, a, r=chosen: rows_linear(layer.pattern, r, v, b, a, relu), (layer.values, layer.bias, x)
        )
    full = layer(x)
    part = rows_linear(layer.pattern, rows, layer.values, layer.bias, x, relu)
    torch.testing.assert_close(part[:, rows], full[:, rows])
    assert int((part != 0).any(0).sum()) <= len(rows)


def test_a_converted_network_trains_and_loads(tmp_path):
    data = fg.data.load("digits")
    model = fg.models.mlp([64, 60, 10], dropout=0.5)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=10)), where="fc1")
    fg.convert_(model, fg.PartitionDropout(4))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    evolution = fg.Evolution(model, optimizer, fg.Constant(0.2))
    fg.fit(model, data.train, optimizer=optimizer, epochs=8, batch_size=32, callbacks=evolution, progress=False)
    assert fg.evaluate(model, data.test)["accuracy"] > 0.9
    fg.save(model, tmp_path / "m.safetensors")
    x = data.test.x[:5]
    assert torch.equal(fg.load(tmp_path / "m.safetensors").eval()(x), model.eval()(x))


@pytest.mark.parametrize("relu", [False, True])
def test_chosen_rows_of_a_first_layer(isa, relu):
    """Where the input needs no gradient another kernel runs."""
    torch.manual_seed(2)
    layer = fg.nn.SparseLinear(50, 200, fg.ErdosRenyi(density=0.3), relu=relu)
    rows = (torch.rand(200) < 0.5).nonzero().squeeze(1)
    for batch in (0, 1, 5, 130):
        x = torch.randn(batch, 50)
        dy = torch.randn(batch, 200)
        mask = torch.zeros(200).index_fill_(0, rows, 1)
        got = torch.autograd.grad(
            rows_linear(layer.pattern, rows, layer.values, layer.bias, x, relu), [layer.values, layer.bias], dy
        )
        expected = torch.autograd.grad(layer(x) * mask, [layer.values, layer.bias], dy)
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-4)


def test_a_sparse_layer_before_it_checks_its_input():
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Dropout(0.5), nn.Linear(100, 3))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)), where="0")
    fg.convert_(model, fg.PartitionDropout(parts=2))
    with pytest.raises(TypeError, match=r"the input must be torch.float32.*Got torch.float64"):
        model[0](torch.randn(4, 64, dtype=torch.float64))
    with pytest.raises(ValueError, match="in_features=64"):
        model[0](torch.randn(4, 60))
    layer, rows = fg.nn.SparseLinear(6, 5), torch.tensor([1, 3])
    with pytest.raises(ValueError, match=r"values must be .* of x's type torch.float64"):
        rows_linear(layer.pattern, rows, layer.values, layer.bias, torch.randn(2, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x must be \(batch, 6\)"):
        rows_linear(layer.pattern, rows, layer.values, layer.bias, torch.randn(2, 5))


@pytest.mark.parametrize(
    ("dropout", "shape"),
    [(nn.Dropout1d, (4, 9, 7)), (nn.Dropout1d, (9, 7)), (nn.Dropout2d, (4, 9, 5, 6)), (nn.Dropout2d, (9, 5, 6)),
     (nn.Dropout3d, (2, 9, 3, 4, 5))],
)  # fmt: skip
def test_dropout_of_channels_drops_channels(dropout, shape):
    model = nn.Sequential(dropout(0.5))
    fg.convert_(model, fg.PartitionDropout(parts=2))
    behind = int(dropout.__name__[-2])
    y = model(torch.ones(shape)).movedim(-1 - behind, 0).flatten(1)
    assert y.shape[0] == 9
    assert bool((y == y[:, :1]).all())
    dropped = (y[:, 0] == 0) | (model(torch.ones(shape)).movedim(-1 - behind, 0).flatten(1)[:, 0] == 0)
    assert bool(dropped.all())


def test_the_features_of_a_linear_layer_are_the_last_dimension():
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5))
    nn.init.constant_(model[0].weight, 1.0)
    fg.convert_(model, fg.PartitionDropout(parts=2))
    y = model(torch.ones(2, 5, 6, 3)).flatten(0, 2)
    assert bool((y == y[:1]).all())
    assert model[1].drawn == 8


@pytest.mark.parametrize("sparse", [False, True])
def test_a_layer_in_several_places_computes_all_rows(sparse):
    linear = nn.Linear(8, 8)
    model = nn.Sequential(linear, nn.Dropout(0.5), linear)
    if sparse:
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.9)))
    fg.convert_(model, fg.PartitionDropout(2))
    assert model[0] is model[2]
    assert bool((model(torch.randn(4, 8)) != 0).all())


@pytest.mark.parametrize("sparse", [False, True])
def test_all_rows_are_computed_where_the_dropout_does_not_train(sparse):
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    if sparse:
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.9)))
    fg.convert_(model, fg.PartitionDropout(2))
    x = torch.randn(4, 8)
    expected = model.eval()(x)
    model.train()[1].eval()
    torch.testing.assert_close(model(x), expected)


def test_an_activation_in_place_behind_a_sparse_layer():
    model = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.1, inplace=True), nn.Dropout(0.5), nn.Linear(8, 2))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)), where="0")
    fg.convert_(model, fg.PartitionDropout(2))
    other = copy.deepcopy(model)
    other[1].inplace = False
    x = torch.randn(4, 8)
    for network in (model, other):
        torch.manual_seed(0)
        network(x).sum().backward()
    for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad)


def test_chosen_rows_that_are_changed_before_their_gradient_say_so():
    layer = fg.nn.SparseLinear(9, 14, fg.ErdosRenyi(density=0.5), relu=True)
    y = rows_linear(layer.pattern, torch.tensor([0, 3]), layer.values, layer.bias, torch.randn(6, 9), True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.neg_().sum().backward()
