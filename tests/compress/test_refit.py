"""Refitting in bounded memory, on any kind of data; searches that hold on other data."""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import filigree as fg
from filigree.calibration import Calibration
from filigree.compress import layer_speed, passes
from filigree.compress.pruning import budget, refit
from filigree.compress.pruning.matrices import matrix_of, write_matrix_
from filigree.compress.pruning.moments import MEMORY
from filigree.compress.pruning.regression import Regression
from filigree.compress.pruning.samples import rows_made, rows_read
from filigree.compress.pruning.subset import subset_order
from filigree.compress.pruning.taps import refined
from filigree.convert import layer_inputs
from filigree.measure.timing import Timing


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def error(small, model, x):
    with torch.no_grad():
        y, z = model(x), small(x)
    return float((z - y).norm() / (y - y.mean(0)).norm())


def redundant(samples, width, seed=0):
    """Samples that fill fewer directions than they have numbers."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(width // 4, width, generator=torch.Generator().manual_seed(99))
    return torch.randn(samples, width // 4, generator=generator) @ basis / width**0.5


def images(samples, seed=0):
    return redundant(samples, 192, seed).view(-1, 3, 8, 8) * 3


def convolutions(padding=1):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=padding), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 12, 3, padding=padding),
        nn.ReLU(), nn.Flatten(), nn.LazyLinear(20), nn.ReLU(), nn.Linear(20, 5),
    )  # fmt: skip


def with_alike_filters(model, noise=0.0):
    """Half of the first layer's filters are sums of the others, but for noise."""
    with torch.no_grad():
        mix = torch.randn(8, 8) / 3
        model[0].weight[8:] = torch.einsum("ij,jckl->ickl", mix, model[0].weight[:8])
        model[0].bias[8:] = mix @ model[0].bias[:8]
        model[0].weight += noise * torch.randn_like(model[0].weight)
    return model


def made(make, x, seed=0):
    torch.manual_seed(seed)
    model = make().eval()
    model(x[:2])
    return model


PRUNE = fg.SubsetPruning(keep=0.5, measure=False)


# -- what is refitted, and how -----------------------------------------------------------------------------------------


def test_few_rows_are_not_fitted_too_well():
    """Least squares on 56 samples of 128 columns: what it says of them is not what it does to others."""
    torch.manual_seed(0)
    model, x, other = fg.models.mlp([64, 256, 256, 10]), torch.randn(64, 64), torch.randn(500, 64)
    smaller, reports = {}, {}
    for compensate in ("least_squares", None):
        smaller[compensate] = copy.deepcopy(model)
        config = fg.MagnitudePruning(keep=0.5, compensate=compensate, measure=False)
        reports[compensate] = str(fg.compress_(smaller[compensate], config, x))
    refitted, without = (error(smaller[compensate], model, other) for compensate in ("least_squares", None))
    assert refitted < 0.8 * without
    assert error(smaller["least_squares"], model, x) > 0.5 * refitted  # about what it is on others
    assert "on 8 samples that nothing was fitted to" in reports["least_squares"]


def test_weights_stay_where_nothing_better_is_known():
    torch.manual_seed(0)
    regression, start, shift = Regression(40, 3, True), torch.randn(3, 40).double(), torch.randn(3).double()
    for _ in range(2):
        x = torch.randn(16, 40)
        regression.add(x, (x @ start.T.float() + shift + torch.randn(16, 3)).float(), held=8)
    assert regression.solve(start, shift, 1e-9) is None
    weight, bias = regression.solve(start, shift + 5, 1e-9)  # a mere shift is enough
    assert torch.equal(weight, start)
    torch.testing.assert_close(bias, shift, atol=1, rtol=0)


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1, "output_padding": 1}, {"dilation": 2}, {"groups": 2}])
def test_what_transposed_convolutions_read(options):
    torch.manual_seed(0)
    layer, x = nn.ConvTranspose2d(4, 6, (3, 2), **options), torch.randn(5, 4, 6, 7)
    read, rows = rows_read(layer, x, 10_000, 0)
    parts = matrix_of(layer).chunk(layer.groups)
    y = torch.cat([part @ weight.T for part, weight in zip(read, parts, strict=True)], 1) + layer.bias
    torch.testing.assert_close(y, rows_made(layer, layer(x), rows))
    again = copy.deepcopy(layer)
    with torch.no_grad():
        write_matrix_(again, 2 * matrix_of(layer))
        assert torch.equal(again.weight, 2 * layer.weight)


@pytest.mark.parametrize("keep", [0.5, fg.Budget(parameters=0.7)])
@pytest.mark.parametrize("exact", [0, 10_000])
def test_transposed_convolutions_are_refitted(exact, keep):
    """Filters that are sums of others: what reads them restores them exactly where it is refitted by columns."""
    x, other = images(120), images(50, seed=1)
    model = made(lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Identity(), nn.ConvTranspose2d(16, 3, 3, stride=2, padding=1)
    ), x)  # fmt: skip
    model = with_alike_filters(model)
    small = copy.deepcopy(model)
    fg.compress_(small, fg.SubsetPruning(keep=keep, exact=exact, damping=1e-9, measure=False), x)
    assert small[2].in_channels < 16
    assert error(small, model, other) < 1e-3


def test_transposed_convolutions_in_groups_lose_the_same_units_of_each():
    x, other = images(200), images(50, seed=1)
    model = made(lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 12, 3, 2, groups=2), nn.ReLU(),
        nn.Conv2d(12, 4, 1),
    ), x)  # fmt: skip
    errors = {}
    for compensate in (None, "least_squares"):
        small = copy.deepcopy(model)
        fg.compress_(small, fg.MagnitudePruning(keep=0.5, compensate=compensate, measure=False), x)
        sizes = small[0].out_channels, small[2].in_channels, small[2].out_channels, small[4].in_channels
        assert sizes == (8, 8, 6, 6)
        assert torch.equal(small[2].kept_outputs[3:], small[2].kept_outputs[:3] + 6)
        errors[compensate] = error(small, model, other)
    assert errors["least_squares"] < 0.9 * errors[None]


def test_units_are_chosen_by_the_reader_that_works_most():
    """The first layer that reads them reads them scaled: it would keep the units that the other hardly sees."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.few, self.many = nn.Linear(8, 16), nn.Linear(16, 2), nn.Linear(16, 64)
            self.register_buffer("scale", torch.cat([torch.full((8,), 100.0), torch.ones(8)]))

        def forward(self, x):
            h = self.make(x)
            return self.few(h * self.scale), self.many(h / self.scale)

    model, x = made(Two, torch.randn(4, 8)), torch.randn(200, 8)
    fg.compress_(model, fg.SubsetPruning(keep=0.5, compensate=None, measure=False), x, where=["make"])
    assert sum(model.make.kept_outputs >= 8) >= 6


def test_only_what_reads_the_pruned_units_is_refitted():
    x = images(60)
    model = made(convolutions, x)
    before = copy.deepcopy(model.state_dict())
    fg.compress_(model, PRUNE, x, where=["0"])
    state = model.state_dict()
    changed = {key.split(".")[0] for key, value in state.items() if not torch.equal(value[:3], before[key][:3])}
    assert changed <= {"0", "3"}
    assert not torch.equal(state["3.bias"], before["3.bias"])


def test_what_comes_after_is_refitted_too_where_no_layer_is_named():
    torch.manual_seed(0)
    model, x, other = fg.models.mlp([64, 96, 96, 96, 10]).eval(), redundant(2_000, 64), redundant(500, 64, 1)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    whole = copy.deepcopy(model)
    errors = {}
    for where in (None, names[:2]):
        small = copy.deepcopy(model)
        fg.compress_(small, replace(PRUNE, keep={names[1]: 24, "*": 1.0}), x, where=where)
        state, before = small.state_dict(), whole.state_dict()
        assert torch.equal(state[f"{names[0]}.weight"], before[f"{names[0]}.weight"])  # nothing changed before it
        refitted = not torch.equal(state[f"{names[3]}.weight"], before[f"{names[3]}.weight"])
        assert refitted == (where is None)
        errors[where is None] = error(small, whole, other)
    assert errors[True] < errors[False], errors


def test_a_layer_that_only_gains_a_bias_has_a_line_in_the_report():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.up, self.down = nn.Linear(64, 48), nn.Linear(48, 96), nn.Linear(96, 48)
            self.head = nn.Linear(48, 10, bias=False)

        def forward(self, x):
            h = self.stem(x)
            return self.head(h + self.down(self.up(h).relu()))

    torch.manual_seed(0)
    model = Stream().eval()
    report = fg.compress_(model, replace(PRUNE, keep={"up": 24, "*": 1.0}), redundant(2_000, 64))
    assert model.head.weight.shape == (10, 48)
    assert model.head.bias is not None
    assert any(change.name == "head" and "gains a bias" in change.note for change in report.changes)


@pytest.mark.parametrize("padding", [0, 1])
def test_by_units_is_nearly_as_good_as_by_columns(padding):
    x, other = images(400), images(200, seed=1)
    model = with_alike_filters(made(lambda: convolutions(padding), x), noise=0.01)
    errors = {}
    for how, options in (("units", {"exact": 0}), ("columns", {}), ("not", {"compensate": None})):
        small = copy.deepcopy(model)
        fg.compress_(small, fg.SubsetPruning(keep=0.5, measure=False, **options), x, where=["0"])
        errors[how] = error(small, model, other)
    assert errors["columns"] < 0.5 * errors["not"]
    assert errors["units"] < 0.6 * errors["not"]


@pytest.mark.parametrize("exact", [0, 10_000])
def test_what_is_left_out_can_be_restored_exactly(exact):
    """Filters that are sums of others: nothing is lost, at the image's border neither."""
    x = images(80)
    model = with_alike_filters(made(convolutions, x))
    model[1], model[2] = nn.Identity(), nn.AvgPool2d(2)
    small = copy.deepcopy(model)
    fg.compress_(small, fg.SubsetPruning(keep=0.5, exact=exact, damping=1e-9, measure=False), x, where=["0"])
    assert small[0].out_channels == 8
    assert error(small, model, images(50, seed=1)) < 1e-3


def test_chunks_change_nothing(monkeypatch):
    x = images(90)
    model = made(convolutions, x)
    for exact in (0, 10_000):
        config = fg.SubsetPruning(keep=0.5, exact=exact, measure=False)
        small, chunked = copy.deepcopy(model), copy.deepcopy(model)
        fg.compress_(small, config, x)
        with monkeypatch.context() as patch:
            patch.setattr(passes, "CHUNK_BYTES", 16 * 64 * 4 * 20)  # 20 images
            patch.setattr(passes, "WHOLE_BYTES", 0)
            runs = Counter()
            chunked[8].register_forward_hook(lambda *_, runs=runs: runs.update(["head"]))
            fg.compress_(chunked, config, x)
        assert runs["head"] > 5
        torch.testing.assert_close(chunked(x), small(x), rtol=1e-3, atol=1e-3)


@pytest.mark.long("a layer of 65,536 columns, and a profile of it: 3 s")
def test_memory_stays_within_the_bound():
    """1024 filters read by kernels of 64 taps: all columns together would need 17 GB."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1024, (8, 1)), nn.ReLU(), nn.Conv2d(1024, 2, (64, 1)), nn.Flatten())
    assert (1024 * 64) ** 2 * 4 > 17e9
    x = torch.randn(24, 1, 80, 1)
    small = copy.deepcopy(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        fg.compress_(small, PRUNE, x)
    live = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert 10e6 < peak < MEMORY
    assert small[0].out_channels == 512
    assert error(small, model, torch.randn(20, 1, 80, 1)) < 0.1


def test_layers_too_wide_to_refit_say_so(monkeypatch):
    monkeypatch.setattr("filigree.compress.pruning.refit.bytes_of", lambda width, outputs: 2 * MEMORY)
    x = images(60)
    model = made(convolutions, x)
    report = fg.compress_(model, PRUNE, x)
    assert "columns need" in str(report)


def test_several_units_at_once_are_chosen_nearly_as_well():
    torch.manual_seed(0)
    f = torch.randn(96, 30).double() @ torch.randn(30, 400).double() + 0.3 * torch.randn(96, 400).double()
    f = torch.cat([f, f[:32]])  # what stands twice must not be taken twice
    s = f @ f.T / 400
    g = torch.randn(128, 9).double()
    g = g @ g.T

    def lost(kept):
        own = s[kept][:, kept] + 1e-9 * torch.eye(len(kept))
        return float((g * (s - s[:, kept] @ torch.linalg.solve(own, s[kept]))).sum())

    one, several = subset_order(s, g, 40, 1), subset_order(s, g, 40, 8)
    assert len(set(several.tolist())) == 40
    assert lost(several) < 1.15 * lost(one)
    assert lost(several) < 0.7 * lost(torch.arange(40))
    assert not any(i in several and i + 96 in several for i in range(32))
    assert sorted(subset_order(s, g, 128, 8).tolist()) == list(range(128))


# -- data --------------------------------------------------------------------------------------------------------------


def test_all_kinds_of_data_say_the_same(monkeypatch):
    monkeypatch.setattr(refit, "FEW", 0)  # which rows would be held out depends on their order
    x, y = images(90), torch.randint(5, (90,))
    model = made(convolutions, x)
    loader = DataLoader(TensorDataset(x, y), batch_size=40)
    results = []
    config = fg.MagnitudePruning(keep=0.5, measure=False)  # its choice does not depend on the order of the data
    for data, forward, other in (  # with other data to judge by: all of these are fitted to
        (x, None, x),
        ((x, y), None, x),
        (TensorDataset(x, y), None, x),
        (loader, None, x),
        ((part for part in x.split(40)), None, x),
        ({"input": x}, None, {"input": x}),
        ([{"image": part} for part in x.split(30)], lambda network, batch: network(batch["image"]), [{"image": x}]),
        (None, lambda network: [network(part) for part in x.split(45)], lambda network: network(x)),
    ):
        small = copy.deepcopy(model)
        fg.compress_(small, config, data, forward=forward, validation=other)
        results.append(small(x).detach())
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError, match="forward="):
        fg.compress_(copy.deepcopy(model), PRUNE, ["text", "text"])
    with pytest.raises(ValueError, match="at least one sample"):
        fg.compress_(copy.deepcopy(model), PRUNE, [])


class Recurrent(nn.Module):
    """A cell that runs over time, and on two inputs."""

    def __init__(self):
        super().__init__()
        self.read, self.cell, self.mix, self.head = (
            nn.Linear(8, 12), nn.Linear(12 + 6, 24), nn.Linear(24, 6), nn.Linear(6, 3)
        )  # fmt: skip

    def forward(self, x, h):
        for t in range(x.shape[1]):
            h = torch.tanh(self.mix(F.relu(self.cell(torch.cat([F.relu(self.read(x[:, t])), h], 1)))))
        return {"y": self.head(h), "h": h}


def test_recurrent_calls_are_all_calibrated_on():
    torch.manual_seed(0)
    model = Recurrent().eval()
    batches = [(redundant(30, 8 * 5, s).view(30, 5, 8), torch.zeros(30, 6)) for s in range(4)]

    def forward(network, batch):
        return network(*batch)

    errors = {}
    x, h = redundant(50, 40, 9).view(50, 5, 8), torch.zeros(50, 6)
    y = model(x, h)["y"].detach()
    for compensate in (None, "least_squares"):
        small = copy.deepcopy(model)
        config = fg.MagnitudePruning(keep=0.5, compensate=compensate, measure=False)  # the same units in both
        fg.compress_(small, config, batches, where=["cell"], forward=forward)
        assert small.cell.out_features == 12
        errors[compensate] = float((small(x, h)["y"].detach() - y).norm() / (y - y.mean(0)).norm())
    assert errors["least_squares"] < 0.85 * errors[None]
    inputs = layer_inputs(model, ["cell"], Calibration(batches, forward))["cell"]
    assert inputs.shape == (4 * 5 * 30, 18)


# -- searches ----------------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.body, self.a, self.b, self.how = fg.models.mlp([32, 60, 40]), nn.Linear(40, 4), nn.Linear(40, 2), how

    def forward(self, x):
        x = F.relu(self.body(x))
        return self.how(self.a(x), self.b(x))


@pytest.mark.parametrize("how", [lambda a, b: (a, b), lambda a, b: {"a": a, "b": b}], ids=["tuple", "dict"])
@pytest.mark.parametrize("keep", [fg.MaxError(0.3), fg.Budget(macs=0.5)], ids=["error", "budget"])
def test_searches_take_several_outputs(how, keep):
    torch.manual_seed(0)
    model, x = Heads(how).eval(), redundant(200, 32)
    before = parameters(model)
    report = fg.compress_(model, fg.SubsetPruning(keep=keep, measure=False), x)
    assert parameters(model) < 0.8 * before
    assert "samples that nothing was fitted to" in str(report)


@pytest.mark.parametrize("samples", [120, 400])
def test_the_largest_error_holds_on_other_data(samples):
    torch.manual_seed(0)
    model = fg.models.mlp([64, 200, 100, 10])
    x, other = redundant(samples, 64), redundant(1000, 64, seed=1)
    small = copy.deepcopy(model)
    report = fg.compress_(small, fg.SubsetPruning(keep=fg.MaxError(0.2), measure=False), x)
    assert parameters(small) < parameters(model)
    assert error(small, model, other) < 0.25
    assert f"on {samples // 4} samples that nothing was fitted to" in str(report)
    given = fg.compress_(copy.deepcopy(model), fg.SubsetPruning(fg.MaxError(0.2), measure=False), x, validation=other)
    assert "on 1,000 samples that nothing was fitted to" in str(given)
    with pytest.raises(ValueError, match="validation="):
        fg.compress_(model, fg.SubsetPruning(fg.MaxError(0.2)), forward=lambda network: network(x))
    fg.compress_(
        model, fg.SubsetPruning(fg.MaxError(0.2), measure=False), forward=lambda network: network(x),
        validation=lambda network: network(other),
    )  # fmt: skip
    assert error(model, copy.deepcopy(model), x) == 0


def test_a_budget_weighs_errors_against_what_they_save():
    """The third layer has few multiply-adds: they are not worth its error."""
    torch.manual_seed(0)
    model = fg.models.mlp([64, 128, 128, 24, 10])
    with torch.no_grad():
        model.fc2.weight[64:] = model.fc2.weight[:64] + 0.003 * torch.randn(64, 128)
        model.fc2.bias[64:] = model.fc2.bias[:64]
    x, other = redundant(400, 64), redundant(300, 64, seed=1)

    def macs(network):
        return fg.measure(network, x[:1]).macs_forward

    small, uniform = copy.deepcopy(model), copy.deepcopy(model)
    fg.compress_(uniform, fg.SubsetPruning(keep=0.6, measure=False), x)
    fg.compress_(small, fg.SubsetPruning(keep=fg.Budget(macs=macs(uniform) / macs(model)), measure=False), x)
    assert macs(small) <= macs(uniform)
    assert small.fc3.out_features > 15
    assert error(small, model, other) < 0.9 * error(uniform, model, other)


def test_latency_is_met_in_turns_and_spares_what_saves_no_time(monkeypatch):
    x = redundant(200, 64)
    model = fg.models.mlp([64, 100, 80, 60, 10])
    whole = parameters(model)
    timed = []

    def milliseconds(network):  # whatever the first layer does
        return 3 + (network.fc2.out_features + network.fc3.out_features) / 20

    def in_turns(before, after, example, seconds=0.05):
        assert before is model
        timed.append(parameters(after))
        return tuple(Timing(*3 * [milliseconds(network)]) for network in (before, after))

    monkeypatch.setattr(budget, "in_turns", in_turns)
    report = fg.compress_(model, fg.SubsetPruning(keep=fg.Budget(latency_ms=7), measure=False), x)
    assert model.fc1.out_features == 100  # half of them save nothing
    assert "left whole: half of its units take 1.00 of the time" in str(report)
    assert 6 < milliseconds(model) <= 7  # no more than the limit, and no less than it takes
    assert min(timed) < parameters(model) < whole
    assert len(timed) < 15  # by bisection


# -- measured ----------------------------------------------------------------------------------------------------------


def test_only_layers_that_become_faster_are_compressed(monkeypatch):
    def times(works, seconds=0.5, least=5):
        return [Timing(t, t, t) for t in (next(answers), next(answers))]

    torch.manual_seed(0)
    model, x = fg.models.mlp([16, 32, 32, 4]), torch.randn(60, 16)
    answers = iter([2.0, 1.0, 2.0, 3.0, 2.0, 1.0])
    monkeypatch.setattr(layer_speed, "time_interleaved", times)
    small = copy.deepcopy(model)
    report = fg.compress_(small, fg.MonteCarlo(samples=1.0), x, measure=True)
    assert [type(small.get_submodule(name)).__name__ for name in ("fc1", "fc2", "fc3")] == [
        "IntegerLinear", "Linear", "IntegerLinear",
    ]  # fmt: skip
    assert "left as they are, since they would not be faster: fc2 (2 -> 3 ms)" in str(report)
    line = next(change.note for change in report.changes if change.name == "latency")
    assert "batch 1:" in line
    assert any(word in line for word in ("faster", "slower", "as fast"))
    answers = iter([2.0, 3.0] * 3)
    same = copy.deepcopy(model)
    report = fg.compress_(same, fg.MonteCarlo(samples=1.0), measure=x[:8])
    assert type(same.fc1) is nn.Linear
    assert not report.changes
    with pytest.raises(ValueError, match="example batch"):
        fg.compress_(model, fg.MonteCarlo(samples=1.0), measure=True)


def test_units_stay_where_removing_them_saves_no_time(monkeypatch):
    def times(works, seconds=0.5, least=5):
        return [Timing(t, t, t) for t in (next(answers), next(answers))]

    monkeypatch.setattr(layer_speed, "time_interleaved", times)
    torch.manual_seed(0)
    model, x = fg.models.mlp([16, 32, 32, 4]), torch.randn(60, 16)
    answers = iter([1.0, 2.0, 1.0, 1.0, 2.0, 1.0])  # fc1 and fc2 together slower, fc2 and fc3 faster
    report = fg.compress_(model, fg.MagnitudePruning(keep=0.5), x, measure=8)
    assert (model.fc1.out_features, model.fc2.out_features) == (32, 16)
    assert "left as they are, since they would not be faster: fc1" in str(report)


def test_conversions_take_measure_too():
    torch.manual_seed(0)
    report = fg.compress_(fg.models.mlp([256, 256, 10]), fg.Sparse(fg.ErdosRenyi(density=0.01)), measure=8)
    assert "ms" in str(report)


def test_taps_of_wide_kernels_are_refitted_without_columns_by_columns():
    torch.manual_seed(0)
    rows, truth = torch.randn(800, 40), torch.randn(3, 40)
    made = rows @ truth.T + 2 + 0.01 * torch.randn(800, 3)
    new, bias = refined([rows[:300], rows[300:]], [made[:300], made[300:]], torch.zeros(3, 40), 1e-9, True)
    torch.testing.assert_close(new, truth, atol=0.01, rtol=0)
    torch.testing.assert_close(bias, torch.full((3,), 2.0), atol=0.01, rtol=0)
    assert refined([rows], [made - 2], truth, 0.01, False) is None  # it is the best one already
    noise = torch.randn(80, 3)  # which fewer rows than columns could follow
    assert refined([torch.randn(80, 200)], [noise], torch.zeros(3, 200), 1e-9, True) is None
