"""Paths through trained networks, and training on the paths of a step."""

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.topology.weighted_paths import weighted_paths


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("how", ["jittered", "independent"])
def test_edges_are_drawn_by_the_chain(how):
    """How often an edge is on a single path: the product of the chain's probabilities."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), nn.Linear(4, 2)]
    with torch.no_grad():
        layers[1].weight[0, 2] = 0
    p2 = layers[1].weight.abs() / layers[1].weight.abs().sum(1, keepdim=True)
    p1 = layers[0].weight.abs() / layers[0].weight.abs().sum(1, keepdim=True)
    expected2 = p2 / 2
    expected1 = expected2.sum(0)[:, None] * p1
    found1, found2 = torch.zeros(12), torch.zeros(8)
    runs, made = 6000, generator()
    for _ in range(runs):
        first, second = weighted_paths(layers, 1, how, made)
        assert len(first) == len(second) == 1
        found1[first] += 1
        found2[second] += 1
    assert (found1 / runs - expected1.flatten()).abs().max() < 0.03
    assert (found2 / runs - expected2.flatten()).abs().max() < 0.03
    assert found2[2] == 0


def test_cost_is_bounded_by_paths_times_depth():
    model = fg.models.mlp([50, 40, 30, 10])
    fg.compress_(model, fg.PathSampling(25))
    for layer in (model.fc1, model.fc2, model.fc3):
        assert layer.nnz <= 25


def test_many_paths_are_the_network():
    model = fg.models.mlp([20, 30, 10])
    x = torch.randn(9, 20)
    expected = model(x).detach()
    report = fg.compress_(model, fg.PathSampling(200_000, rescale=False))
    assert "merged" in str(report)
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)


def test_rescaling_keeps_each_units_sum():
    model = fg.models.mlp([30, 20, 10])
    sums = model.fc2.weight.detach().abs().sum(1)
    fg.compress_(model, fg.PathSampling(60))
    torch.testing.assert_close(model.fc2.dense().weight.abs().sum(1), sums)


def test_convolutions_groups_and_files(tmp_path):
    def network():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 5)
        )

    model = network()
    fg.compress_(model, fg.PathSampling(10))
    assert model[0].nnz % 9 == 0
    assert model[0].nnz <= 90
    x = torch.randn(3, 4, 6, 6)
    fg.save(model, tmp_path / "m.safetensors")
    assert torch.equal(fg.load(tmp_path / "m.safetensors", into=network())(x), model(x))


def test_what_is_no_chain_is_refused():
    model = nn.ModuleDict({"a": nn.Linear(4, 8), "b": nn.Linear(6, 2)})
    with pytest.raises(ValueError, match="'b' reads 6 units, 'a' makes 8"):
        fg.compress_(model, fg.PathSampling(3))
    with pytest.raises(ValueError, match="paths"):
        fg.PathSampling(0)
    with torch.no_grad():
        model["a"].weight.zero_()
    with pytest.raises(ValueError, match="'a' are all zero"):
        fg.compress_(model, fg.PathSampling(3), where="a")


def test_a_step_trains_its_paths_only():
    torch.manual_seed(0)
    model = fg.models.mlp([64, 50, 10])
    whole = fg.models.mlp([64, 50, 10])
    whole.load_state_dict(model.state_dict())
    fg.convert_(model, fg.OnlinePaths(30))
    x, y = torch.randn(40, 64), torch.randint(10, (40,))
    model.eval()
    torch.testing.assert_close(model(x), whole(x))
    model.train()
    seen = set()
    for _ in range(3):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        touched = model.fc1.weight.grad.flatten().nonzero().squeeze(1).tolist()
        assert 0 < len(touched) <= 30
        assert set(touched) <= set(model.fc1.step_places.tolist())
        seen |= set(model.fc1.step_places.tolist())
    assert len(seen) > 40  # fresh ones each step


def test_its_gradients_are_those_of_the_masked_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    fg.convert_(model, fg.OnlinePaths(15, rescale=False))
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    y = model(x)
    masks = []
    for layer in (model[0], model[2]):
        mask = torch.zeros(layer.weight.numel(), dtype=torch.float64)
        mask[layer.step_places] = 1
        masks.append(mask.view_as(layer.weight))
    its = [p.detach().clone().requires_grad_() for p in (x, *model.parameters())]
    expected = nn.functional.linear(
        torch.tanh(nn.functional.linear(its[0], its[1] * masks[0], its[2])), its[3] * masks[1], its[4]
    )
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(y)
    for got, want in zip(
        torch.autograd.grad(y, [x, *model.parameters()], dy), torch.autograd.grad(expected, its, dy), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_online_paths_train_save_and_load(tmp_path):
    torch.manual_seed(0)
    model = fg.models.mlp([64, 100, 10])
    fg.convert_(model, fg.OnlinePaths(1000))
    data = fg.data.load("digits")
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    fg.fit(model, data.train, optimizer=optimizer, epochs=10, batch_size=32, progress=False)
    assert fg.evaluate(model, data.test)["accuracy"] > 0.9
    fg.save(model, tmp_path / "m.safetensors")
    x = data.test.x[:9]
    assert torch.equal(fg.load(tmp_path / "m.safetensors").eval()(x), model.eval()(x))


def test_online_paths_after_pruning_and_with_layers_that_are_skipped():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    fg.convert_(model, fg.OnlinePaths(64))
    x = torch.randn(8, 16)
    model(x)
    fg.compress_(model, fg.RandomPruning(keep=0.5), x)
    model.train()(x)
    first = model[0].step_places
    model(x)
    assert model[0].step_places.max() < 16 * 8  # of the pruned layer, drawn for each step
    assert not torch.equal(first, model[0].step_places)
    model[2](torch.randn(8, 8))  # a layer on its own, as where a mollified block skips those before it
    assert model[2].step_places.max() < 8 * 8
