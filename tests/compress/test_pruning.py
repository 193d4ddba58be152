"""Pruning to the distinct units."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import filigree as fg
from filigree.compress.pruning.clusters import cluster, dead, representatives
from filigree.compress.pruning.correlation import correlation
from filigree.compress.pruning.graph import units_of
from filigree.compress.pruning.jacobians import jacobian_norms
from filigree.compress.pruning.redundancy import Redundancy
from filigree.compress.pruning.samples import unit_activations
from filigree.compress.pruning.subclusters import by_hoh, by_quantile, hoh_threshold

METHODS = ["kmeans", "ward", "single", "complete", "average", "centroid", "spectral", "gmm"]
CONFIGS = [
    fg.RandomPruning(keep=0.5), fg.MagnitudePruning(keep=0.5), fg.SubsetPruning(keep=0.5),
    fg.ClusterPruning(keep=0.5), fg.ClusterPruning(keep=0.5, method="ward", normalize=True, features="pooled"),
    fg.SubClustering(), fg.SubClustering(criterion="hoh", initial=3, max_splits=1),
]  # fmt: skip


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.conv2(F.relu(self.bn1(self.conv1(x))))
        return self.head(F.relu(x).mean((2, 3)))


class Concatenating(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.mix, self.head = nn.Conv2d(10, 7, 3), nn.Linear(7 * 36, 5)

    def forward(self, x):
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.head(F.relu(self.mix(x)).flatten(1))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(F.relu(self.point(F.relu(self.depth(F.relu(self.stem(x)))))).mean((2, 3)))


def blocks():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2, padding=1), nn.BatchNorm2d(12),
        nn.ReLU(), nn.Conv2d(12, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5),
    )  # fmt: skip


def vgg_like():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 5),
    )  # fmt: skip


IMAGES = {
    "residual": Residual,
    "concatenating": Concatenating,
    "depthwise": Grouped,
    "grouped": blocks,
    "vgg": vgg_like,
}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:.*makes the outputs worse")
@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{type(c).__name__}-{getattr(c, 'method', '')}")
@pytest.mark.parametrize("compensate", ["least_squares", "correlation", None])
def test_networks_become_smaller_and_run(name, config, compensate):
    torch.manual_seed(0)
    model = IMAGES[name]()
    model.eval()
    x = torch.randn(40, 3, 8, 8)
    expected = model(x).detach()
    before, modules = parameters(model), dict(model.named_modules())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    report = fg.compress_(model, type(config)(**{**vars(config), "compensate": compensate}), x)
    assert parameters(model) < before
    assert report.changes[-1].name == "latency"
    assert "batch 128" in report.changes[-1].note
    assert re.search(r"^latency +batch", str(report), flags=re.M)  # no counts, as of no module
    assert report.parameters[1] < report.parameters[0]
    assert all(model.get_submodule(key) is module for key, module in modules.items())  # the same objects
    y = model(x)
    assert y.shape == expected.shape
    assert bool(y.isfinite().all())
    y.sum().backward()
    assert {key: value.shape for key, value in model.state_dict().items()} != {k: v.shape for k, v in state.items()}


def duplicated(kind):
    """A network in which each unit stands twice, and the smaller one it should become."""
    torch.manual_seed(0)
    small = vgg_like().eval() if kind == "conv" else fg.models.mlp([12, 10, 8, 5]).eval()
    big = vgg_like().eval() if kind == "conv" else fg.models.mlp([12, 20, 8, 5]).eval()
    if kind == "conv":
        big[0], big[1] = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16).eval()
        big[4] = nn.Conv2d(16, 12, 3, padding=1)
        first, norm, second, its = big[0], big[1], big[4], (small[0], small[1], small[4])
    else:
        first, norm, second, its = big.fc1, None, big.fc2, (small.fc1, None, small.fc2)
    with torch.no_grad():
        for a, b in zip(first.parameters(), its[0].parameters(), strict=True):
            a.copy_(torch.cat([b, b]))
        second.weight.copy_(torch.cat([its[2].weight, its[2].weight], 1) / 2)
        second.bias.copy_(its[2].bias)
    if norm is None:
        big.fc3.load_state_dict(small.fc3.state_dict())
    else:
        for number in (5, 9, 11):
            big[number].load_state_dict(small[number].state_dict())
    return big, small, "0" if kind == "conv" else "fc1"


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("compensate", ["least_squares", "correlation"])
@pytest.mark.parametrize("config", ["cluster", "subset"])
def test_duplicates_are_merged_without_loss(kind, compensate, config):
    big, small, name = duplicated(kind)
    x = torch.randn(200, 12) if kind == "linear" else torch.randn(60, 3, 8, 8)
    torch.testing.assert_close(big(x), small(x), rtol=1e-4, atol=1e-4)
    made = fg.ClusterPruning(keep=0.5, method="ward", compensate=compensate, damping=1e-9) if config == "cluster" else (
        fg.SubsetPruning(keep=0.5, compensate=compensate, damping=1e-9))  # fmt: skip
    fg.compress_(big, made, x, where=name)
    assert parameters(big) == parameters(small)
    torch.testing.assert_close(big(x), small(x), rtol=1e-3, atol=1e-3)


def test_the_correlation_update_is_the_closed_form():
    """John 2019, eqs. 5.8 to 5.12, for one unit."""
    torch.manual_seed(1)
    model = fg.models.mlp([6, 5, 3])
    x = torch.randn(300, 6)
    f = torch.relu(model.fc1(x)).detach().double()
    w, b = model.fc2.weight.detach().double().clone(), model.fc2.bias.detach().double().clone()
    (group,) = units_of(model, x[:1], ["fc1"])
    features = unit_activations(model, [group], x, False)
    with torch.no_grad():
        correlation(
            model, [group], features, {"fc1": torch.tensor([0, 1, 2, 3, 2])}, True
        )  # unit 2 inherits from unit 4
    u, s = f[:, 4], f[:, 2]
    alpha = ((u - u.mean()) * (s - s.mean())).mean() / s.var(correction=0)
    beta = u.mean() - alpha * s.mean()
    expected = w.clone()
    expected[:, 2] += alpha * w[:, 4]
    torch.testing.assert_close(model.fc2.weight.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.fc2.bias.double(), b + beta * w[:, 4], rtol=1e-4, atol=1e-5)


def test_least_squares_beats_correlation_beats_nothing():
    torch.manual_seed(0)
    data = fg.data.load("digits")
    model = fg.models.mlp([64, 100, 60, 10])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    fg.fit(model, data.train, optimizer=optimizer, epochs=30, batch_size=32, progress=False)
    whole = fg.evaluate(model, data.test)["accuracy"]
    found = {}
    for compensate in (None, "least_squares"):
        small = copy.deepcopy(model)
        fg.compress_(small, fg.RandomPruning(keep=0.25, compensate=compensate), data.train)
        found[compensate] = fg.evaluate(small, data.test)["accuracy"]
    assert found["least_squares"] > found[None] + 0.05
    small = copy.deepcopy(model)
    fg.compress_(small, fg.SubsetPruning(keep=0.25), data.train)
    assert fg.evaluate(small, data.test)["accuracy"] > whole - 0.03


def test_saved_loaded_and_quantised(tmp_path):
    torch.manual_seed(0)
    model = fg.models.resnet([1, 1], 8)
    x = torch.randn(30, 3, 16, 16)
    model.train()(x)
    model.eval()
    fg.compress_(model, fg.ClusterPruning(keep=0.5), x)
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors").eval()
    assert torch.equal(again(x), model(x))
    fg.compress_(model, fg.MonteCarlo(samples=0.5), x)
    fg.save(model, tmp_path / "q.safetensors")
    assert torch.equal(fg.load(tmp_path / "q.safetensors").eval()(x), model(x))
    assert (tmp_path / "q.safetensors").stat().st_size < (tmp_path / "m.safetensors").stat().st_size


def test_sparse_layers_are_pruned():
    torch.manual_seed(0)
    model = fg.models.mlp([20, 30, 30, 5])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.4), fuse=False), where=["fc1", "fc2"])
    x = torch.randn(50, 20)
    fg.compress_(model, fg.MagnitudePruning(keep={"fc1": 10, "fc2": 0.5}, compensate=None), x)
    assert (model.fc1.out_features, model.fc2.in_features, model.fc2.out_features, model.fc3.in_features) == (
        10,
        10,
        15,
        15,
    )
    torch.testing.assert_close(model(x), nn.Sequential(*[m.dense() if hasattr(m, "dense") else m for m in model])(x))


@pytest.mark.parametrize("method", METHODS)
def test_clusters_find_groups(method):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 40, generator=generator) * 10
    f = centres.repeat_interleave(6, 0) + 0.1 * torch.randn(30, 40, generator=generator)
    labels = cluster(f, 5, method, 0)
    assert len(set(labels)) == 5
    assert all(len(set(labels[6 * i : 6 * i + 6])) == 1 for i in range(5))
    assert len(set(cluster(f, 1, method, 0))) == 1
    assert len(set(cluster(f, 30, method, 0))) == 30


def test_dbscan_finds_the_number():
    centres = torch.randn(4, 40) * 10
    f = torch.cat([centres.repeat_interleave(5, 0) + 0.01 * torch.randn(20, 40), torch.randn(1, 40) * 50])
    labels = cluster(f, None, "dbscan", 0, 1.0)
    assert len(set(labels)) == 5  # noise is a cluster of its own


def test_representatives():
    f = torch.tensor([[0.0, 0], [1, 1], [2, 2.1], [9, 9], [9, 8]])
    labels = torch.tensor([0, 0, 0, 1, 1]).numpy()
    norms, biases = torch.tensor([3.0, 1, 2, 5, 6]), torch.tensor([-9.0, 1, 2, 3, -4])
    for select, expected in (
        ("weight_norm", [0, 4]),
        ("bias", [2, 3]),
        ("bias_magnitude", [0, 4]),
        ("centroid", [1, 3]),
    ):
        kept, replacements = representatives(labels, f, norms, biases, select, 0)
        assert kept.tolist()[0] == expected[0]
        assert replacements.tolist()[:3] == [expected[0]] * 3
        if select != "centroid":
            assert kept.tolist() == expected


def test_dead_units_go_first():
    torch.manual_seed(0)
    model = fg.models.mlp([10, 20, 5])
    with torch.no_grad():
        model.fc1.bias[:8] = -100.0
    x = torch.randn(50, 10)
    expected = model(x).detach()
    report = fg.compress_(model, fg.ClusterPruning(keep=0.6), x)
    assert "8 dead" in str(report)
    assert model.fc1.out_features == 12
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)
    assert dead(torch.tensor([[1.0, 1, 1], [0, 1, 2]])).tolist() == [True, False]


def test_histogram_of_histograms():
    torch.manual_seed(0)
    tight, loose = torch.randn(1, 500).repeat(6, 1) * 0.1, torch.randn(6, 500) * 5
    low = hoh_threshold([tight, loose], 0.2, 10, True, False)
    assert low > 0
    split = by_hoh(torch.cat([tight, loose]), 2, 0.5, 0, max_splits=3)
    assert split.splits <= 3
    identical = torch.ones(5, 30) * torch.randn(1, 30)
    assert by_hoh(identical, 1, 0.5, 0).splits == 0  # 2-means cannot part what is the same


def test_the_quantile_rule_is_monotone_and_deterministic():
    torch.manual_seed(0)
    f = torch.randn(40, 100) @ torch.randn(100, 100)
    counts = [len(set(by_quantile(f, 3, p).labels)) for p in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] >= 3
    assert (by_quantile(f, 3, 0.5).labels == by_quantile(f, 3, 0.5).labels).all()
    scaled = torch.cat([f[:5], 3 * f[:5]])
    assert len(set(by_quantile(scaled, 1, 0.45).labels)) == 5  # scaled copies merge


def test_the_measured_error_is_that_of_the_next_layer():
    torch.manual_seed(0)
    model = fg.models.mlp([12, 20, 6])
    x = torch.randn(400, 12) @ torch.randn(12, 12)
    (group,) = units_of(model, x[:1], ["fc1"])
    features = unit_activations(model, [group], x, False)["fc1"]
    kept = torch.arange(0, 20, 2)
    error = Redundancy(group, model, features).own_error(kept)
    h = torch.relu(model.fc1(x)).double()
    y = h @ model.fc2.weight.double().T
    y = (y - y.mean(0)).detach()
    centred = (h - h.mean(0))[:, kept].detach()
    residual = y - centred @ torch.linalg.lstsq(centred, y).solution
    assert abs(error - float(residual.norm() / y.norm())) < 1e-3


def test_budgets():
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8)
    for budget, measure in (
        (fg.Budget(parameters=0.4), parameters),
        (fg.Budget(macs=0.3), lambda m: fg.measure(m, x[:1]).macs_forward),
        (fg.Budget(bytes=6000), lambda m: sum(t.numel() * t.element_size() for t in m.state_dict().values())),
    ):
        model = vgg_like().eval()
        before = measure(model)
        fg.compress_(model, fg.SubsetPruning(keep=budget), x)
        limit = next(v for v in (budget.parameters, budget.macs, budget.bytes) if v is not None)
        assert measure(model) <= (limit * before * 1.02 if limit < 1 else limit)
    model = vgg_like().eval()
    fg.compress_(model, fg.SubsetPruning(keep=fg.MaxError(0.3, of="layer"), round_to=4), x)
    assert model[0].out_channels % 4 == 0
    with pytest.raises(ValueError, match="smallest"):
        fg.compress_(vgg_like(), fg.SubsetPruning(keep=fg.Budget(bytes=10)), x)
    with pytest.raises(ValueError, match="one of"):
        fg.Budget()


@pytest.mark.parametrize("make", [vgg_like, lambda: nn.Sequential(nn.Flatten(), *fg.models.mlp([192, 60, 40, 10]))])
def test_max_error_is_of_the_output(make):
    torch.manual_seed(0)
    x = torch.randn(400, 3, 8, 8)
    x = x[:20][torch.randint(20, (400,))] + 0.3 * x  # something to be redundant about
    model = make().eval()
    y = model(x).detach()
    sizes = []
    for error in (0.05, 0.2, 0.6):
        small = copy.deepcopy(model)
        fg.compress_(small, fg.SubsetPruning(keep=fg.MaxError(error)), x)
        assert (small(x) - y).norm() / (y - y.mean(0)).norm() <= 1.1 * error  # of the first samples all are here
        sizes.append(parameters(small))
    assert parameters(model) >= sizes[0] > sizes[1] > sizes[2]
    bound = copy.deepcopy(model)
    fg.compress_(bound, fg.SubsetPruning(keep=fg.MaxError(0.6, of="bound")), x)
    assert parameters(bound) >= sizes[2]
    assert (bound(x) - y).norm() / y.norm() <= 0.6


def test_numbers_of_units_are_refused_and_errors_are_reported():
    x = torch.randn(50, 6)
    for convert in (fg.Noisy(), fg.Mollified()):
        model = fg.models.mlp([6, 8, 8, 3], activation="tanh")
        fg.convert_(model, convert)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match="Prune before"):
            fg.compress_(model, fg.MagnitudePruning(keep=0.5), x)
        assert all(torch.equal(a, before[k]) for k, a in model.state_dict().items())
    model = fg.models.mlp([6, 8, 8, 3], activation="tanh")
    fg.convert_(model, fg.Noisy(p="layer"))
    report = fg.compress_(model, fg.MagnitudePruning(keep=0.5), x)
    assert model.fc1.out_features == 4
    assert "own error" in str(report)


class Reshaping(nn.Module):
    """The width is written down in forward: no graph can change it."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5)

    def forward(self, x):
        return self.head(self.conv(x).view(-1, 144))


def test_what_cannot_be_removed_is_refused_by_name_and_unchanged():
    model = Reshaping()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"'conv' cannot be taken out"):
        fg.compress_(model, fg.RandomPruning(keep=0.5), torch.randn(10, 3, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_bad_input():
    model = fg.models.mlp([10, 8, 4])
    x = torch.randn(20, 10)
    for wrong in (0.0, 1.5, -1, 0):
        with pytest.raises(ValueError, match="keep"):
            fg.ClusterPruning(keep=wrong)
    with pytest.raises(ValueError, match="method"):
        fg.ClusterPruning(method="ward2")
    with pytest.raises(ValueError, match="inputs is needed"):
        fg.compress_(model, fg.ClusterPruning())
    with pytest.raises(ValueError, match="two samples"):
        fg.compress_(model, fg.ClusterPruning(), x[:1])
    with pytest.raises(ValueError, match="finite"):
        fg.compress_(model, fg.ClusterPruning(), x * float("nan"))
    with torch.no_grad():
        model.fc1.weight[0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        fg.compress_(model, fg.ClusterPruning(), x)
    one = fg.models.mlp([10, 1, 4])
    fg.compress_(one, fg.ClusterPruning(keep=0.5), x)  # a layer of one unit keeps it
    assert one.fc1.out_features == 1


def test_connections(tmp_path):
    torch.manual_seed(0)
    data = fg.data.load("digits")
    model = fg.models.mlp([64, 60, 10])
    fg.fit(model, data.train, optimizer=torch.optim.Adam(model.parameters()), epochs=20, batch_size=32, progress=False)
    found = {}
    for config in (fg.MagnitudePruning, fg.RandomPruning):
        for compensate in (None, "least_squares"):
            small = copy.deepcopy(model)
            fg.compress_(small, config(keep=0.2, of="connections", compensate=compensate), data.train)
            assert small.fc1.nnz == round(0.2 * 64 * 60)
            found[config.__name__, compensate] = fg.evaluate(small, data.test)["accuracy"]
    for name in ("MagnitudePruning", "RandomPruning"):
        assert found[name, "least_squares"] > found[name, None]
    largest = model.fc1.weight.abs().flatten().topk(round(0.2 * 64 * 60)).indices.sort().values
    small = copy.deepcopy(model)
    fg.compress_(small, fg.MagnitudePruning(keep=0.2, of="connections"))
    assert torch.equal(small.fc1.flat_indices(), largest)
    fg.save(small, tmp_path / "m.safetensors")
    x = data.test.x[:5]
    assert torch.equal(fg.load(tmp_path / "m.safetensors")(x), small(x))
    with pytest.raises(ValueError, match="share"):
        fg.compress_(small, fg.MagnitudePruning(keep=5, of="connections"), where="fc1")


def test_the_bound_holds_where_it_is_exact():
    """One linear layer: the error is |delta W x|, at most |delta W| |x|; and Jacobian norms are those of autograd."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4))
    x = torch.randn(5, 7)
    for layer in (0, 2):
        pruned = copy.deepcopy(model)
        with torch.no_grad():
            pruned[layer].weight[0] = 0
        found = fg.net_deviation(model, pruned, x, probes=4000)
        assert found.bounds[str(2 - layer)] == 0
        assert found.error <= found.bound
        assert found.value == found.error - found.bound
        norms = []
        for sample in x:
            if layer == 2:
                h = torch.tanh(model[0](sample))
                norms.append(h.norm() * 4**0.5)
            else:
                inner = torch.func.jacrev(lambda w, s=sample: torch.tanh(w @ s + model[0].bias))(model[0].weight)
                norms.append(inner.norm() * model[2].weight.norm())
        change = (model[layer].weight - pruned[layer].weight).norm()
        expected = float((torch.stack(norms).mean() * change).detach())
        assert abs(found.bounds[str(layer)] - expected) < 0.03 * expected
        exact = fg.net_deviation(model, pruned, x, probes=None)
        assert abs(exact.bounds[str(layer)] - expected) < 1e-4 * expected


def test_exact_and_probed_jacobians_of_convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 4, 5),
    )  # fmt: skip
    x = torch.randn(3, 2, 8, 8)
    exact, probed = (jacobian_norms(model, x, probes) for probes in (None, 3000))
    for part in ("step", "weight", "outer"):
        for name, norm in getattr(exact, part).items():
            torch.testing.assert_close(getattr(probed, part)[name], norm, rtol=0.05, atol=0)
    whole = torch.func.vmap(torch.func.jacrev(lambda one: model[:3](one[None])[0]))(x)
    torch.testing.assert_close(exact.step["0"], whole.flatten(1).norm(dim=1))
    assert exact.positions == {"0": 64, "3": 4, "6": 1}
    branching = fg.models.mlp([4, 3, 2])
    branching.forward = lambda x: branching.fc1(x).sum(1, keepdim=True) + branching.fc2(x[:, :3])
    twice = fg.models.mlp([4, 4, 2])
    twice.forward = lambda x: twice.fc2(twice.fc1(twice.fc1(x)))
    for other, inputs in (
        (branching, torch.randn(2, 4)),
        (twice, torch.randn(2, 4)),
        (Residual(), torch.randn(2, 3, 8, 8)),
    ):
        with pytest.raises(ValueError, match="no chain"):
            jacobian_norms(other, inputs)
    circular = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"))
    its, weight = torch.randn(2, 1, 4, 4), circular[0].weight
    found = jacobian_norms(circular, its, None).weight["0"]
    whole = [
        torch.func.jacrev(lambda w, one=one: torch.func.functional_call(circular, {"0.weight": w}, one[None]))(weight)
        for one in its
    ]
    torch.testing.assert_close(found, torch.stack([each.norm() for each in whole]).detach())


def test_net_deviation_of_smaller_networks():
    torch.manual_seed(0)
    model = vgg_like().eval()
    x = torch.randn(30, 3, 8, 8)
    found = []
    for keep in (1.0, 0.5, 0.25):
        small = copy.deepcopy(model)
        fg.compress_(small, fg.MagnitudePruning(keep=keep, compensate=None), x)
        found.append(fg.net_deviation(model, small, x))
    assert found[0].error < 1e-5  # dead units went
    assert found[0].error < found[1].error < found[2].error
    assert found[1].bound < found[2].bound
    assert "deviation" in str(found[2])
    with pytest.raises(ValueError, match="no layer"):
        fg.net_deviation(model, fg.models.mlp([3, 4, 5]), x)


@pytest.mark.parametrize("form", ["printed", "derived"])
def test_retraining_bound(form):
    torch.manual_seed(0)
    initial = fg.models.mlp([10, 12, 3])
    x, y = torch.randn(200, 10), torch.randint(3, (200,))
    model, origin = copy.deepcopy(initial), fg.RetrainingBaseline(x, y)
    with pytest.raises(ValueError, match="saw no training"):
        fg.retraining_bound(origin, model, model)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    fg.fit(model, (x, y), optimizer=optimizer, epochs=5, batch_size=10, callbacks=origin, progress=False)
    small = copy.deepcopy(model)
    fg.compress_(small, fg.RandomPruning(keep=0.5, compensate=None), x)
    bound = fg.retraining_bound(origin, model, small, form=form)
    losses = [float(F.cross_entropy(m(x), y).detach()) for m in (initial, model, small)]
    if form == "derived":
        assert abs(bound - 5 * (losses[2] - losses[1]) / (losses[0] - losses[1])) < 1e-3 * bound
    sparse, zeros = copy.deepcopy(model), copy.deepcopy(model)
    fg.compress_(sparse, fg.MagnitudePruning(0.5, of="connections", compensate=None), x)
    with torch.no_grad():  # the same in dense tensors
        for name in ("fc1", "fc2"):
            zeros.get_submodule(name).weight.copy_(sparse.get_submodule(name).dense().weight)
    bounds = [fg.retraining_bound(origin, model, pruned, gamma=2, form=form) for pruned in (sparse, zeros)]
    assert bounds[0] > 0
    assert abs(bounds[0] - bounds[1]) < 1e-4 * bounds[0]
    fresh = fg.RetrainingBaseline(x, y)
    fresh.load_state_dict(origin.state_dict())
    assert fg.retraining_bound(fresh, model, sparse, gamma=2, form=form) == bounds[0]
    with pytest.raises(ValueError, match="form"):
        fg.retraining_bound(origin, model, sparse, form="other")


def test_gamma_is_found_again():
    """Epochs made by a known relation, with some noise: its coefficients and its deviation come back."""
    generator = torch.Generator().manual_seed(0)
    runs = [
        {"level": level, "batch_size": batch, "lr": lr, "optimizer": optimizer}
        for level in (0.1, 0.3, 0.5, 0.9)
        for batch in (32, 128, 256)
        for lr in (0.1, 0.01)
        for optimizer in ("adam", "sgd")
    ]
    noise = (0.1 * torch.randn(len(runs), generator=generator)).tolist()
    bounds = (1 + torch.rand(len(runs), generator=generator)).tolist()
    gammas = [3 * r["level"] ** 2 * r["batch_size"] ** 0.5 * (2 if r["optimizer"] == "sgd" else 1) for r in runs]
    epochs = [b * g * math.exp(e) for b, g, e in zip(bounds, gammas, noise, strict=True)]
    gamma = fg.fit_gamma(runs, bounds, epochs)
    found = dict(zip(gamma.names, gamma.coefficients, strict=True))
    assert abs(found["log level"] - 2) < 0.1
    assert abs(found["log batch_size"] - 0.5) < 0.1
    assert abs(found["log lr"]) < 0.1
    assert abs(found["optimizer=sgd"] - math.log(2)) < 0.2
    assert 0.07 < gamma.deviation < 0.14
    low, high = gamma.interval(runs[5])
    assert low < gamma(runs[5]) < high
    assert abs(math.log(gamma(runs[5]) / gammas[5])) < 0.1
    assert "log level" in str(gamma)
    with pytest.raises(ValueError, match="positive"):
        fg.fit_gamma(runs, bounds, [0.0, *epochs[1:]])
    with pytest.raises(ValueError, match="positive"):
        fg.fit_gamma([r | {"level": 0} for r in runs], bounds, epochs)
    with pytest.raises(ValueError, match="at least 3"):
        fg.fit_gamma(runs[:2], bounds[:2], epochs[:2])


class Reordered(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.conv, self.fc, self.how = nn.Conv2d(2, 8, 3), nn.Linear(8 * 16, 3), how

    def forward(self, x):
        return self.fc(self.how(F.relu(self.conv(x))).reshape(len(x), -1))


@pytest.mark.parametrize("config", [fg.SubsetPruning(keep=0.5), fg.MagnitudePruning(keep=0.5, compensate=None)])
@pytest.mark.parametrize("how", [
    lambda x: x.sort(1).values, lambda x: x[:, torch.randperm(8)], lambda x: x.roll(1, 1), lambda x: x.softmax(1),
], ids=["sorted", "picked", "roll", "softmax"])  # fmt: skip
def test_units_that_are_reordered_or_mixed_are_refused(how, config):
    torch.manual_seed(0)
    model, x = Reordered(how), torch.randn(20, 2, 6, 6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'conv' cannot be taken out: they are (compared|picked)"):
        fg.compress_(model, config, x, where=["conv"])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("how", [lambda x: x.permute(0, 2, 3, 1), lambda x: x.flip(1), lambda x: x.flip(2)])
def test_units_that_move_are_followed(how):
    torch.manual_seed(0)
    model, x = Reordered(how), torch.randn(20, 2, 6, 6)
    whole = copy.deepcopy(model)
    fg.compress_(model, fg.MagnitudePruning(keep=0.5, compensate=None), x, where=["conv"])
    assert model.conv.out_channels == 4
    with torch.no_grad():
        whole.fc.weight[:, torch.isin(torch.arange(128), model.fc.kept_inputs, invert=True)] = 0
    torch.testing.assert_close(model(x), whole(x))


def test_of_depthwise_convolutions_all_filters_of_a_channel_go():
    torch.manual_seed(0)
    x = torch.randn(50, 3, 8, 8)
    for dead_ones in (slice(0, 8), slice(8, 16)):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=8), nn.ReLU(), nn.Conv2d(16, 4, 1), nn.Flatten(),
            nn.Linear(64, 2),
        ).eval()  # fmt: skip
        with torch.no_grad():
            model[2].weight[dead_ones], model[2].bias[dead_ones] = 0, 0
        y = model(x).detach()
        fg.compress_(model, fg.MagnitudePruning(keep=0.5, compensate=None), x, where=["2"])
        assert (model[0].out_channels, model[2].out_channels, model[2].groups) == (4, 8, 4)
        torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("structured", [fg.ACDC(order=1), fg.Fastfood(), fg.PHD()])
def test_structured_layers_are_refused_by_name(structured):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(384, 30), nn.ReLU(), nn.Linear(30, 2))
    fg.convert_(model, structured, where=["3"])
    with pytest.raises(ValueError, match=r"SubsetPruning: '3.*structured layer"):
        fg.compress_(model, fg.SubsetPruning(keep=0.5), torch.randn(16, 3, 10, 10))


def test_modes_stay():
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2))
    model[1].eval()
    with pytest.raises(ValueError, match="does not run on the data"):
        fg.compress_(model, fg.SubsetPruning(keep=0.5), torch.randn(30, 4))
    assert [m.training for m in model] == [True, False, True, True]
    fg.compress_(model, fg.SubsetPruning(keep=0.5, compensate=None), torch.randn(30, 5))
    assert model.training
    assert [m.training for m in model] == [True, False, True, True]


@pytest.mark.parametrize("fuse", [False, True])
def test_sparse_networks_are_refitted(fuse):
    torch.manual_seed(0)
    model, x = fg.models.mlp([16, 64, 64, 4]), torch.randn(300, 16)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3), fuse=fuse))
    error = {}
    for compensate in ("least_squares", None):
        made = copy.deepcopy(model)
        fg.compress_(made, fg.MagnitudePruning(keep=0.7, compensate=compensate, measure=False), x)
        with torch.no_grad():
            error[compensate] = float((made(x) - model(x)).norm() / model(x).norm())
    assert error["least_squares"] < 0.6 * error[None]
    with pytest.raises(ValueError, match=r"needs dense readers. 'fc\d' is a SparseLinear"):
        fg.compress_(model, fg.MagnitudePruning(keep=0.5, compensate="correlation", measure=False), x)
    with pytest.raises(ValueError, match="connections are pruned of dense layers"):
        fg.compress_(model, fg.MagnitudePruning(keep=0.5, of="connections"))


def test_what_finds_the_number_itself_takes_no_budget():
    for make in (fg.SubClustering, lambda keep: fg.ClusterPruning(method="dbscan", keep=keep)):
        for keep in (fg.MaxError(0.1), fg.Budget(macs=0.5)):
            with pytest.raises(ValueError, match=r"finds the number of units itself: keep cannot be"):
                make(keep=keep)


def test_complex_data():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 3)

        def forward(self, x):
            return self.last(self.first(torch.view_as_real(x).flatten(1)).relu())

    model = Model()
    fg.compress_(model, fg.MagnitudePruning(keep=0.5), torch.randn(64, 4, dtype=torch.cfloat), progress=False)
    assert model.first.out_features == 16


def test_a_model_that_is_elsewhere():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model.register_buffer("elsewhere", torch.zeros(2, device="meta"))
    with pytest.raises(ValueError, match=r"MagnitudePruning: the model must be on the CPU\. '.*elsewhere' is on meta"):
        fg.compress_(model, fg.MagnitudePruning(), torch.randn(9, 3), progress=False)
    with pytest.raises(ValueError, match="MonteCarlo: the model must be on the CPU"):
        fg.compress_(model, fg.MonteCarlo(), torch.randn(9, 3), progress=False)
