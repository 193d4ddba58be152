"""One-shot sparsity: the optimal brain surgeon against brute force, patterns, every kind of layer, files."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import filigree as fg
from filigree.calibration import Calibration
from filigree.compress.one_shot import fitting, moments, one_shot, products, rounding, surgery
from filigree.compress.one_shot.allocation import by_error
from filigree.compress.one_shot.patterns import Pattern
from filigree.convert import inference_context


def problem(rows=4, columns=6, groups=1, seed=0):
    """A weight and the second moments of correlated inputs, in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)
    mix = torch.randn(groups, columns, columns, generator=generator, dtype=torch.float64)
    return weight, mix @ mix.transpose(1, 2) / columns + 0.05 * torch.eye(columns, dtype=torch.float64)


def cost(weight, moments_, mask):
    return float(surgery.lost(surgery.refitted(weight, moments_, mask) - weight, moments_).sum())


def brute_force(row, hessian, count):
    """The optimal brain surgeon as printed: the inverse is made anew without the weights that are gone."""
    w, left, gone, costs = row.clone(), list(range(len(row))), [], []
    for _ in range(count):
        inverse = torch.linalg.inv(hessian[left][:, left])
        saliency = torch.tensor([float(w[q] ** 2 / inverse[i, i]) for i, q in enumerate(left)])
        i = int(saliency.argmin())
        w[left] -= w[left[i]] / inverse[i, i] * inverse[i]
        w[left[i]] = 0
        costs.append(float(saliency[i]))
        gone.append(left.pop(i))
    return w, gone, costs


@pytest.mark.parametrize("groups", [1, 2])
def test_one_by_one_is_the_optimal_brain_surgeon(groups):
    weight, hessian = problem(4, 7, groups)
    steps = [(cost_, g, r, q) for g in range(groups) for r in range(4)
             for cost_, q in rising(*brute_force(weight[g, r], hessian[g], 7)[1:])]  # fmt: skip
    expected = torch.ones_like(weight, dtype=torch.bool)
    for _, g, r, q in sorted(steps)[: round(0.6 * weight.numel())]:
        expected[g, r, q] = False
    mask = surgery.one_by_one(weight, hessian, 0.4, Pattern())
    assert torch.equal(mask, expected)
    assert torch.equal(surgery.surgeon(weight, hessian, 0.4, Pattern()), expected)
    new = surgery.refitted(weight, hessian, mask)
    for g, r in itertools.product(range(groups), range(4)):
        count = int((~mask[g, r]).sum())
        torch.testing.assert_close(new[g, r], brute_force(weight[g, r], hessian[g], count)[0], rtol=1e-9, atol=1e-10)


def rising(gone, costs):
    """A row's losses, none cheaper than those before it: they come in their order."""
    return zip(itertools.accumulate(costs, max), gone, strict=True)


def test_refitting_is_least_squares_on_the_support(monkeypatch):
    weight, hessian = problem(5, 12, 2)
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    new = surgery.refitted(weight, hessian, mask)
    assert not bool(new[~mask].any())
    gradient = (new - weight) @ hessian
    assert float(gradient[mask].abs().max()) < 1e-10
    monkeypatch.setattr(surgery, "SOLVED", 0)
    torch.testing.assert_close(surgery.refitted(weight, hessian, mask), new, rtol=1e-5, atol=1e-6)


def test_the_choice_is_better_than_by_magnitude(monkeypatch):
    for seed, keep in itertools.product(range(4), (0.5, 0.3, 0.15)):
        weight, hessian = problem(6, 24, seed=seed)
        plain = cost(weight, hessian, Pattern().largest(weight.abs(), keep))
        exact = cost(weight, hessian, surgery.surgeon(weight, hessian, keep, Pattern()))
        with monkeypatch.context() as patched:
            patched.setattr(surgery, "EXACT", 0)
            mask = surgery.surgeon(weight, hessian, keep, Pattern())
        assert int(mask.sum()) == round(keep * mask.numel())
        columns = cost(weight, hessian, surgery.column_by_column(weight, hessian, keep, Pattern()))
        assert exact <= plain
        assert cost(weight, hessian, mask) <= min(plain, columns) * (1 + 1e-9)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("text", ["2:4", "1:4", "3:8", (2, 1), (3, 2), (1, 5)])
def test_patterns_hold_exactly(text, exact, monkeypatch):
    monkeypatch.setattr(surgery, "EXACT", 1e9 if exact else 0)
    weight, hessian = problem(5, 16)
    pattern = Pattern.of(text)
    mask = surgery.surgeon(weight, hessian, 0.5, pattern)
    if pattern.m:
        assert bool((mask.unflatten(-1, (-1, pattern.m)).sum(-1) == pattern.n).all())
    else:
        blocks = pattern.blocks(torch.ones_like(weight))
        kept = pattern.blocks(mask.double())
        assert bool(((kept == 0) | (kept == blocks)).all())
        assert int((kept > 0).sum()) == round(0.5 * kept.numel())
    assert cost(weight, hessian, mask) <= cost(weight, hessian, pattern.largest(weight.abs(), 0.5))


def test_pattern_of_a_convolution_counts_channels_at_a_tap():
    model, x = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)), torch.randn(30, 8, 7, 7)
    fg.compress_(model, fg.OneShot(pattern="2:4"), x)
    for number in (0, 2):
        kept = model[number].dense().weight != 0
        assert bool((kept.unflatten(1, (-1, 4)).sum(2) == 2).all())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3))
    report = str(fg.compress_(model, fg.OneShot(pattern="2:4"), torch.randn(30, 3, 7, 7)))
    assert "left whole: 4 does not divide its 3 inputs" in report
    with pytest.raises(ValueError, match=r"no layer can be pruned .*: '0': 4 does not divide its 3 inputs"):
        fg.compress_(nn.Sequential(nn.Conv2d(3, 4, 3)), fg.OneShot(pattern="2:4"), torch.randn(9, 3, 7, 7))
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    fg.compress_(model, fg.OneShot(0.5, pattern=(1, 9)), torch.randn(9, 3, 7, 7))
    assert set((model[0].dense().weight != 0).flatten(2).sum(2).flatten().tolist()) == {0, 9}


def test_rounding_is_better_than_to_the_nearest_and_than_the_walk():
    for seed, bits in itertools.product(range(3), (2, 3, 4)):
        weight, hessian = problem(6, 20, 2, seed)
        mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
        start = surgery.refitted(weight, hessian, mask)
        counts, scale = rounding.rounded(weight, hessian, mask, start, bits)
        most = 2 ** (bits - 1) - 1
        assert float(counts.abs().max()) <= most
        assert torch.equal(counts, counts.round())
        assert not bool(counts[~mask].any())
        by = rounding.nearest_scale(start, hessian.diagonal(dim1=1, dim2=2), bits)
        nearest = (start / by[..., None]).round().clamp(-most, most)
        each = by[..., None].expand_as(start)
        walked = rounding._walk(start, hessian, mask, each, most)
        ours, plain, walk = (float(surgery.lost(c * s - weight, hessian).sum())
                             for c, s in ((counts, scale), (nearest, each), (walked, each)))  # fmt: skip
        assert ours < walk
        assert ours < plain


def test_few_rows_are_shrunk_more():
    torch.manual_seed(0)
    spread = torch.diag(torch.linspace(0.01, 4, 40).double())[None]
    few, many = (float(fitting.shrinkage(spread, count)) for count in (20, 2000))
    trace, squares = float(spread.sum()), float(spread.square().sum())
    mixed = (0.95 * squares + trace**2) / (20.95 * (squares - trace**2 / 40))
    assert few == pytest.approx(min(mixed, 0.5) / (1 - min(mixed, 0.5)))
    assert few > 10 * many > 0
    model, x = nn.Sequential(nn.Linear(60, 30), nn.ReLU(), nn.Linear(30, 4)), correlated((60,), 32)
    other, error = correlated((60,), 400, 3), {}
    for damping in (None, 0.01):
        pruned = copy.deepcopy(model)
        fg.compress_(pruned, fg.OneShot(0.5, damping=damping), x)
        error[damping] = float((outputs(pruned, other) - outputs(model, other)).norm())
    assert error[None] < error[0.01]


LAYERS = {
    "linear": (lambda: nn.Linear(10, 6), (10,)),
    "sequence": (lambda: nn.Linear(10, 6), (5, 10)),
    "no bias": (lambda: nn.Linear(10, 6, bias=False), (10,)),
    "1-D": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 11)),
    "2-D": (lambda: nn.Conv2d(4, 6, (2, 3), padding=1, dilation=(1, 2)), (4, 6, 7)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 6, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (4, 6, 6)),
    "3-D": (lambda: nn.Conv3d(2, 6, 2), (2, 4, 4, 4)),
    "transposed, 1-D": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), (4, 9)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, padding=1, output_padding=1, groups=2, dilation=(1, 2)), (4, 5, 5)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_what_columns_read_times_the_matrix_is_what_the_layer_computes(kind):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer, x = make().double(), torch.randn(3, *shape, dtype=torch.float64)
    (product,) = products.products_of(layer).values()
    matrix = product.matrix(layer)
    rows = product.rows(layer, ((x,), {}), 10**9, torch.Generator())
    y = torch.cat(list(rows @ matrix.transpose(1, 2)), 1)  # (positions, outputs)
    y = y if layer.bias is None else y + layer.bias
    expected = layer(x)
    expected = (
        expected.flatten(0, -2) if isinstance(layer, nn.Linear) else expected.flatten(2).transpose(1, 2).flatten(0, 1)
    )
    torch.testing.assert_close(y, expected)
    before = copy.deepcopy(layer.state_dict())
    product.write_(layer, matrix, None)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    drawn = product.rows(layer, ((x,), {}), 2, torch.Generator().manual_seed(1))
    assert drawn.shape == (rows.shape[0], 2, rows.shape[2])


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(12, 2, batch_first=True, **options), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.attention(x, value=x, key=x)[0])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTM(6, 10, batch_first=True), nn.GRU(10, 8, batch_first=True, bidirectional=True)
        self.cell, self.head = nn.LSTMCell(16, 9), nn.Linear(9, 3)

    def forward(self, x):
        state = None
        for step in self.gru(self.lstm(x)[0])[0].unbind(1):
            state = self.cell(step, state)
        return self.head(state[0])


NETWORKS = {
    "images": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
            nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(96, 5),
        ), (2, 6, 6),
    ),
    "series": (lambda: nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.ConvTranspose1d(8, 4, 2, 2)), (2, 12)),
    "attention": (Attention, (5, 12)),
    "attention, apart": (lambda: Attention(kdim=12, vdim=12, bias=False, add_bias_kv=True), (5, 12)),
    "encoder": (
        lambda: nn.Sequential(nn.TransformerEncoderLayer(12, 2, 20, batch_first=True), nn.Linear(12, 3)), (5, 12)
    ),
    "recurrent": (Recurrent, (5, 6)),
}  # fmt: skip


def correlated(shape, count=160, seed=1):
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return x + 0.7 * x.roll(1, -1) + 0.5 * x.roll(1, 1)


def outputs(model, x):
    with inference_context(model):
        return model(x)


LONG = pytest.mark.long("half a second and more for each network")
QUICK = {"series", "attention, apart"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else LONG) for name in NETWORKS])
def test_networks(name, tmp_path):
    """Better than by magnitude on data it was not fitted to, and the same from its file, in integers too."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x, other = make(), correlated(shape), correlated(shape, 80, 2)
    expected = outputs(model, other)
    error = {}
    for label, config in {
        "obs": fg.OneShot(0.5), "magnitude": fg.OneShot(0.5, method="magnitude", compensate=None),
        "bits": fg.OneShot(0.5, bits=5),
    }.items():  # fmt: skip
        pruned = copy.deepcopy(model)
        report = fg.compress_(pruned, config, x)
        y = outputs(pruned, other)
        error[label] = float((y - expected).norm() / (expected - expected.mean(0)).norm())
        fg.save(pruned, tmp_path / "m.safetensors")
        torch.manual_seed(1)
        again = fg.load(tmp_path / "m.safetensors", into=make())
        assert torch.equal(outputs(again, other), y)
        assert [type(module) for module in again.modules()] == [type(module) for module in pruned.modules()]
        assert all(torch.equal(v, pruned.state_dict()[k]) for k, v in again.state_dict().items())
        assert "not fitted to" in str(report)
    assert error["obs"] < 0.9 * error["magnitude"]
    assert error["bits"] < error["magnitude"]


def test_a_wide_matrix_is_taken_in_parts(monkeypatch):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv1d(6, 8, 4), nn.ReLU(), nn.Conv1d(8, 4, 3)), correlated((6, 20))
    whole, parts, plain = (copy.deepcopy(model) for _ in range(3))
    fg.compress_(whole, fg.OneShot(0.5), x)
    fg.compress_(plain, fg.OneShot(0.5, method="magnitude", compensate=None), x)
    monkeypatch.setattr(moments, "WIDEST", 9)
    monkeypatch.setattr(moments, "NUMBERS", 100)  # a pass over the data for each part
    fg.compress_(parts, fg.OneShot(0.5), x)
    assert float((parts[0].weight == 0).float().mean()) == 0.5
    a, b, c = ((outputs(network, x) - outputs(model, x)).norm() for network in (whole, parts, plain))
    assert a < b < c
    rounded = copy.deepcopy(model)
    fg.compress_(rounded, fg.OneShot(0.5, bits=4), x)
    for row in rounded[0].weight.flatten(1):
        assert len(row.unique()) <= 15


def test_a_layer_called_twice_is_fitted_to_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 8)

        def forward(self, x):
            for _ in range(2):
                x = self.b(torch.relu(self.a(x))) * 3 + 2
            return x

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(200, 8)
    calls = moments.arguments_of(model, "a", x)
    assert len(calls) == 2
    product = products.products_of(model.a)[""]
    ((_, found),) = moments.moments_of(product, "a", (model, model), [x], 2, 0)
    both = torch.cat([args[0] for args, _ in calls]).double()
    torch.testing.assert_close(found.own[0], torch.cov(both.t(), correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean[0], both.mean(0), rtol=1e-5, atol=1e-5)
    error = {}
    for how in ("least_squares", None):
        pruned = copy.deepcopy(model)
        fg.compress_(pruned, fg.OneShot(0.3, compensate=how), x)
        error[how] = float((outputs(pruned, x) - outputs(model, x)).norm())
    assert error["least_squares"] < error[None]


def test_later_layers_are_fitted_to_what_the_pruned_ones_give_them():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5)), correlated((12,), 400)
    error = {}
    for sequential in (True, False):
        pruned = copy.deepcopy(model)
        fg.compress_(pruned, fg.OneShot(0.7, sequential=sequential), x)
        error[sequential] = float((outputs(pruned, x) - outputs(model, x)).norm())
    assert error[True] < error[False]


def test_allocation():
    costs = {"a": lambda keep: 2 * (1 - keep), "b": lambda keep: 0.1 * (1 - keep)}
    shares = by_error({"a": 100, "b": 300}, 0.5, lambda name, keep: costs[name](keep))
    assert sum(shares[name] * size for name, size in (("a", 100), ("b", 300))) == pytest.approx(200)
    assert shares["a"] > 0.9 > shares["b"]
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2)),
        correlated((12,)),
    )
    error, kept = {}, {}
    for how in ("uniform", "error"):
        pruned = copy.deepcopy(model)
        fg.compress_(pruned, fg.OneShot(0.7, allocation=how), x)
        error[how] = float((outputs(pruned, x) - outputs(model, x)).norm())
        kept[how] = sum(pruned[i].nnz for i in (0, 2, 4))
    assert abs(kept["error"] - kept["uniform"]) <= 3
    assert error["error"] < error["uniform"]


def test_wanda_keeps_the_largest_products_in_each_row():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(10, 6)), torch.randn(100, 10) * torch.linspace(0.1, 3, 10) + 0.5
    pruned = copy.deepcopy(model)
    config = fg.OneShot(0.6, method="wanda", compensate=None)
    fg.compress_(pruned, config, x)
    fitted_to = config._split(model, Calibration(x))[0].tensor
    scores = model[0].weight.abs() * fitted_to.square().mean(0).sqrt()
    expected = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(4, 1).indices, True)
    weight = pruned[0].dense().weight
    assert torch.equal(weight, model[0].weight * expected)


def test_seeds_and_what_is_refused():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 3)), torch.randn(40, 2, 6, 6)
    states = []
    for seed in (0, 0, 1):
        pruned = copy.deepcopy(model)
        fg.compress_(pruned, fg.OneShot(0.5, seed=seed), x)
        states.append(pruned.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["0.values"], states[2]["0.values"])
    before = copy.deepcopy(model.state_dict())
    for config, data, message in (
        (fg.OneShot(0.5), None, "data are needed"),
        (fg.OneShot({"0": 0.5}), x, "no pattern for '2'"),
        (fg.OneShot(0.5), 1e30 * x, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            fg.compress_(model, config, data)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for arguments in ({"pattern": "4:2"}, {"pattern": "a"}, {"sparsity": 0.3, "pattern": "2:4"}, {"sparsity": 1.0},
                      {"pattern": "2:4", "allocation": "error"}):  # fmt: skip
        with pytest.raises(ValueError, match="OneShot"):
            fg.OneShot(**arguments)
    fg.compress_(model, fg.OneShot(0.5, method="magnitude"))  # without data
    assert model[2].nnz == 96


def test_magnitude_alone_needs_no_moments_of_the_data(monkeypatch):
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    same, x = copy.deepcopy(model), torch.randn(50, 12)
    config = fg.OneShot(0.5, method="magnitude", compensate=None)
    monkeypatch.setattr(one_shot, "moments_of", None)
    report = fg.compress_(model, config, x)
    fg.compress_(same, config)
    assert torch.equal(model(x), same(x))
    assert "error" in report.changes[-1].note


def test_connections_of_convolutions_are_refitted_too():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), correlated((2, 8, 8))
    error = {}
    for how in ("least_squares", None):
        pruned = copy.deepcopy(model)
        fg.compress_(pruned, fg.MagnitudePruning(keep=0.4, of="connections", compensate=how), x)
        error[how] = float((outputs(pruned, x) - outputs(model, x)).norm())
    assert error["least_squares"] < 0.8 * error[None]


def test_moments_of_two_networks():
    torch.manual_seed(0)
    before, x = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3)), torch.randn(50, 5) + 2
    after = copy.deepcopy(before)
    nn.init.normal_(after[0].weight)
    product = products.products_of(before[1])[""]
    ((_, found),) = moments.moments_of(product, "1", (before, after), [x[:20], x[20:]], 1, 0)
    was, now = (network[0](x).detach().double() for network in (before, after))
    torch.testing.assert_close(found.cross[0], (now - now.mean(0)).t() @ (was - was.mean(0)) / 50, rtol=1e-4, atol=1e-5)
    how = fitting.How("obs", Pattern(), True, 1e-9)
    dense = fitting.fitted(product.matrix(before[1]), found, 1.0, how, 1)
    y = now.float() @ dense.weight[0].float().t() + before[1].bias + dense.shift.float()
    design = F.pad(now, (0, 1), value=1.0)
    best = design @ torch.linalg.lstsq(design, before(x).detach().double()).solution
    torch.testing.assert_close(y.double(), best, rtol=1e-3, atol=1e-3)


def test_experts_that_read_other_samples_behind_a_pruned_router():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(16, 2)
            self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

        def forward(self, x):
            chosen, y = self.router(x).argmax(1), torch.zeros_like(x)
            for number, expert in enumerate(self.experts):
                y[chosen == number] = expert(x[chosen == number])
            return y

    torch.manual_seed(0)
    model = Experts()
    fg.compress_(model, fg.OneShot(0.5), torch.randn(512, 16), progress=False)
    assert all(isinstance(layer, fg.nn.SparseLinear) for layer in model.experts)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_weights_stay():
    model = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 4), nn.Linear(4, 4))
    report = fg.compress_(model, fg.OneShot(0.5), torch.randn(64, 4), progress=False)
    assert isinstance(model[2], fg.nn.SparseLinear)
    assert str(report).count("it has no weights") == 2
