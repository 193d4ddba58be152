"""`fg.shrink`: what it returns keeps the metric, is what it says, comes back from a file, and is never slower."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.calibration import Calibration
from filigree.measure.timing import Timing
from filigree.shrink import shrinking
from filigree.shrink.metrics import Judge, least_of
from filigree.shrink.plans import Form, Slot, between, fitted, rounded
from filigree.shrink.samples import Samples
from filigree.shrink.sensitivity import Effect, path_of
from filigree.shrink.shrinking import METHODS
from filigree.shrink.shrunk import Attempt, Shrunk
from filigree.shrink.speed import EXACT, LayerClock, LayoutOptions, _differ


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def _half_the_time(monkeypatch):
    """Each layer that changes takes half of the time, whatever the machine measures."""

    def ratios(clock, changed):
        before = {name: clock._model.get_submodule(name) for name in clock.before}
        return {name: 0.5 for name, layer in before.items() if _differ(layer, changed.get_submodule(name))}

    monkeypatch.setattr(LayerClock, "ratios", ratios)


def redundant(*sizes):
    """A network half of whose units do what others do: they can go."""
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    for layer in layers[:-2:2]:
        layer.weight.data = layer.weight.data[: len(layer.weight) // 2].repeat(2, 1)
        layer.bias.data = layer.bias.data[: len(layer.bias) // 2].repeat(2)
    return nn.Sequential(*layers[:-1]).eval()


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.long("a search")
@pytest.mark.usefixtures("_half_the_time")
def test_redundant_units_go_and_the_model_is_as_it_was(tmp_path):
    model, x = redundant(20, 128, 128, 10), torch.randn(200, 20)
    before = state_of(model)
    result = fg.shrink(model, x, batch=64, methods=["units"], seconds=20)
    assert same(model, before)
    assert type(model) is nn.Sequential
    assert result.metric == "r2"
    assert result.samples == 50
    tried = [attempt for attempt in result.attempts if attempt.method == "units"]
    assert any(a.holds and a.metric > 0.995 and a.bytes < result.original.bytes / 2 for a in tried)  # half are copies
    assert result.winner.holds
    assert result.winner.metric >= result.least
    assert result.speedup > 1 or result.winner.method == "original"
    assert result.met
    assert result.verdict() in str(result)
    fg.save(result.model, tmp_path / "small.safetensors")
    again = fg.load(tmp_path / "small.safetensors", into=redundant(20, 128, 128, 10))
    with torch.no_grad():
        torch.testing.assert_close(again(x), result.model(x), rtol=1e-4, atol=1e-4)  # laid out: another order of sums
    figure = fg.plot.shrunk(result)
    assert sum(len(trace.x) for trace in figure.data if trace.name in ("original", "layout", "units")) == len(
        result.attempts
    )
    assert result.to_dict()["winner"]["metric"] == result.winner.metric


@pytest.mark.long("a search, by time measured")
def test_accuracy_on_digits_with_bytes():
    data = fg.data.load("digits")
    torch.manual_seed(0)
    model = fg.models.mlp([64, 64, 10])
    fg.fit(model, data.train, optimizer=torch.optim.Adam(model.parameters(), 0.01), epochs=4, progress=False)
    size = fg.measure(model).bytes_disk
    result = fg.shrink(model, data.train, keep=0.98, bytes=int(0.6 * size), methods=["bits", "units"], samples=1200)
    assert result.metric == "accuracy"
    assert result.met
    assert result.winner.bytes <= 0.6 * size
    assert fg.measure(result.model).bytes_disk == result.winner.bytes
    assert result.winner.metric >= 0.98 * result.original.metric
    # the winner is the fastest of many, by 300 held-out samples: on others it keeps less
    assert fg.evaluate(result.model, data.test)["accuracy"] > 0.92 * fg.evaluate(model, data.test)["accuracy"]


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16 * 16, 5)

    def forward(self, x):
        x = nn.functional.pad(x, (0, 0, 1, 1))
        x = self.second(self.first(x).relu()).relu()
        return self.head(nn.functional.max_pool2d(x, 2)[..., :4, :4].flatten(1)).softmax(1)


@pytest.mark.long("a search")
@pytest.mark.usefixtures("_half_the_time")
def test_convolutions_behind_padding_with_probabilities():
    torch.manual_seed(0)
    model = Convolutions().eval()
    model.head.weight.data *= 20
    x = torch.randn(80, 1, 12, 14)
    result = fg.shrink(model, x, keep=0.9, seconds=30, methods=["units", "bits"])
    assert result.metric == "agreement"  # rows that sum to 1
    assert result.original.metric == 1
    assert any(attempt.method == "units" for attempt in result.attempts)
    assert result.winner.metric >= 0.9


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.long("a search, by time measured")
def test_recurrent():
    torch.manual_seed(0)
    model, x = Recurrent().eval(), torch.randn(64, 6, 8)
    y = model(x).argmax(1)
    result = fg.shrink(model, (x, y), keep=0.9, seconds=20)
    assert result.metric == "accuracy"
    assert result.original.metric == 1
    assert result.winner.metric >= 0.9
    with torch.no_grad():
        assert result.model(x).shape == (64, 4)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 32), nn.Linear(32, 2)

    def forward(self, left, right):
        return {"scores": self.head((self.body(left) + self.body(right)).relu())}


def test_arguments_by_name_and_outputs_by_name():
    torch.manual_seed(0)
    model = Named().eval()
    data = {"left": torch.randn(60, 6), "right": torch.randn(60, 6)}
    result = fg.shrink(model, data, keep=0.9, batch=8, seconds=20, methods=["units", "bits"])
    assert result.metric == "r2"
    assert result.samples == 15
    assert any("its input is no tensor" in note for note in result.notes)
    assert result.winner.metric >= 0.9
    with torch.no_grad():
        assert result.model(**data)["scores"].shape == (60, 2)


def test_a_metric_of_the_callers_own_and_a_latency_that_cannot_be_met():
    model, x = redundant(12, 32, 6), torch.randn(100, 12)
    expected = model(x).detach()

    def closeness(network):
        with torch.no_grad():
            return 1 - float((network(x) - expected).norm() / expected.norm())

    result = fg.shrink(model, x, closeness, keep=0.95, methods=["units"], seconds=20, latency_ms=1e-9)
    assert result.metric == "closeness"
    assert not result.met
    assert result.winner.holds
    assert closeness(result.model) == pytest.approx(result.winner.metric, abs=1e-4)
    assert "no network met what was asked" in str(result)
    seen = []
    fg.shrink(model, x, lambda y, t: seen.append((y.shape, t.shape)) or 1.0, methods=["bits"], seconds=5)
    assert set(seen) == {((25, 6), (25, 6))}


def test_what_cannot_be_shrunk_is_returned_as_it_was():
    model = nn.Sequential(nn.Flatten(), nn.Softmax(1)).eval()
    result = fg.shrink(model, torch.randn(16, 2, 3))
    assert result.speedup == 1
    assert "left as it was" in str(result)
    assert "no layers that can be shrunk" in str(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 1.5}, r"keep must be above 0, up to 1. Got 1.5"),
        ({"latency_ms": 0}, r"latency_ms must be above 0"),
        ({"methods": ["magic"]}, r"methods must be one of"),
        ({"methods": []}, r"methods must be some of units, bits, ranks, connections"),
        ({"metric": "f1"}, r"metric must be one of 'accuracy', 'agreement', 'r2'"),
        ({"metric": "accuracy"}, r"needs targets"),
        ({"batch": 0}, r"batch must be at least 1"),
        ({"where": "nothing"}, r"where='nothing' matches no layer"),
        ({"metric": lambda model: float("nan")}, r"the metric of the original must be finite"),
    ],
)
def test_bad_arguments(arguments, message):
    model = redundant(12, 16, 6)
    with pytest.raises(ValueError, match=message):
        fg.shrink(model, torch.randn(40, 12), **arguments)


def test_bad_data():
    model = redundant(12, 16, 6)
    with pytest.raises(ValueError, match=r"at least 8 samples"):
        fg.shrink(model, torch.randn(4, 12))
    with pytest.raises(ValueError, match=r"data are needed"):
        fg.shrink(model)
    with pytest.raises(ValueError, match=r"as many targets as samples"):
        fg.shrink(model, (torch.randn(40, 12), torch.zeros(3)))
    with pytest.raises(TypeError, match=r"metric must take \(model\) or \(outputs, targets\)"):
        fg.shrink(model, torch.randn(40, 12), lambda a, b, c: 1.0)
    with pytest.raises(TypeError, match=r"must return a number. Got a str"):
        fg.shrink(model, torch.randn(40, 12), lambda model: "good")


# -- the parts -------------------------------------------------------------------------------------------------------


def test_samples_and_their_targets_stay_together():
    x, y = torch.arange(40.0)[:, None], torch.arange(40)
    for data in ((x, y), [(x[:16], y[:16]), (x[16:], y[16:])], torch.utils.data.TensorDataset(x, y)):
        fit, held = Samples.of(data, None, 1000, nn.Identity()).split(0)
        assert (len(fit), len(held)) == (30, 10)
        assert torch.equal(held.inputs.inputs[:, 0].long(), held.targets)
        assert sorted([*fit.targets.tolist(), *held.targets.tolist()]) == y.tolist()
    fit, held = Samples.of(({"a": x, "b": 3}, y), None, 1000, Scaled()).split(0)
    assert torch.equal(held.inputs.inputs[0]["a"][:, 0].long(), held.targets[0])
    assert held.inputs.inputs[0]["b"] == 3
    ragged = [(torch.ones(2, n), torch.ones(2)) for n in (3, 4, 5, 6)]
    fit, held = Samples.of(ragged, None, 1000, nn.Identity()).split(0)
    assert (len(fit.inputs.inputs), len(held.targets)) == (3, 1)
    assert len(Samples.of(x, None, 12, nn.Identity())) == 12
    assert Samples.of(x[:3], None, 12, nn.Identity()).example(7).inputs.shape == (7, 1)


def test_samples_with_outputs_of_a_usual_size_are_the_example():
    x = torch.tensor([[1.0], [0.01], [-3.0], [2.0], [-1.5]])
    samples = Samples.of(x, None, 1000, nn.Identity())
    assert samples.example(3, nn.Identity()).inputs.flatten().tolist() == [-1.5, 1, 2]
    assert samples.example(6, nn.Identity()).inputs.flatten().tolist() == pytest.approx([-1.5, 1, 2, 0.01, -3, -1.5])
    assert samples.example(2, Total()).inputs.flatten().tolist() == pytest.approx([1, 0.01])  # not by rows
    assert samples.example(2, Nothing()).inputs.flatten().tolist() == pytest.approx([1, 0.01])


class Total(nn.Module):
    def forward(self, x):
        return x.sum()


class Nothing(nn.Module):
    def forward(self, x):
        return x[:, :0]


class Scaled(nn.Module):
    def forward(self, a, b):
        return a * b


class Graph(nn.Module):
    """Its rows are nodes, each of which reads others."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x, adjacency):
        return adjacency @ self.b(torch.relu(adjacency @ self.a(x)))


def test_rows_of_a_mapping_are_cut_only_where_the_model_takes_them_as_samples():
    torch.manual_seed(0)
    model, graph = Graph(), {"x": torch.randn(20, 6), "adjacency": torch.rand(20, 20).softmax(1)}
    one = Samples.of(graph, None, 8, model)
    assert len(one) == 20  # not cut to 8 nodes
    assert one.example(3).inputs[0]["x"] is graph["x"]
    with pytest.raises(ValueError, match="several batches are needed"):
        one.split(0)
    fit, held = Samples.of([graph] * 5, None, 1000, model).split(0)
    assert (len(fit.inputs.inputs), len(held.inputs.inputs)) == (4, 1)
    assert fit.example(3).inputs[0]["x"] is graph["x"]
    batches = [{"a": torch.randn(9, n), "b": torch.tensor(2.0)} for n in (3, 4)]
    assert Samples.of(batches, None, 1000, Scaled()).example(2).inputs[0]["a"].shape == (2, 3)
    result = fg.shrink(model, graph, "r2", validation=graph, seconds=2)
    assert result.original.metric == 1


def test_metrics():
    x = torch.eye(4).repeat(3, 1)
    y = torch.arange(4).repeat(3)
    model, other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    model.weight.data = torch.eye(4)
    other.weight.data = torch.eye(4)[[1, 0, 2, 3]]
    held = Samples(Calibration(x), y)
    assert Judge(None, model, held).name == "accuracy"
    assert (Judge(None, model, held)(model), Judge(None, model, held)(other)) == (1, 0.5)
    assert Judge("agreement", model, held)(other) == 0.5
    without = Samples(Calibration(x))
    assert Judge(None, model, without).name == "agreement"  # its rows are probabilities
    assert Judge(None, nn.Linear(4, 4), without).name == "r2"
    assert Judge("r2", model, without)(model) == 1
    assert Judge("r2", model, without)(other) == pytest.approx(-1 / 3)  # an error of 12, a spread of 9
    numbers = Samples(Calibration(x), x)
    assert Judge(None, model, numbers).name == "r2"
    assert Judge(None, model, numbers)(model) == 1
    assert least_of(0.9, 0.5) == pytest.approx(0.45)
    assert least_of(-2.0, 0.9) == pytest.approx(-2.2)


def test_plans_are_carried_out():
    model, x = redundant(20, 64, 64, 10), torch.randn(150, 20)
    plan = {
        Slot("units", "0"): 0.5, Slot("weights", "2"): Form(sparsity=0.5), Slot("weights", "4"): Form(bits=8),
    }  # fmt: skip
    network = fitted(model, plan, Calibration(x))
    assert network[0].out_features == 32
    assert network[2].nnz == 32 * 64 // 2
    assert type(network[4]).__name__ == "IntegerLinear"
    with torch.no_grad():
        assert float((network(x) - model(x)).norm() / model(x).norm()) < 0.5
    low = fitted(model, {Slot("weights", "2"): Form(rank=0.25)}, Calibration(x))
    assert low[2].rank == 16


def test_half_way():
    assert between(None, 0.5) == 0.75
    assert between(1.0, 0.5) == 0.75
    assert between(Form(sparsity=0.5), Form(sparsity=0.9)) == Form(sparsity=0.7)
    assert between(None, Form(rank=0.5)) == Form(rank=0.75)
    assert between(None, Form(bits=8)) is None
    assert rounded(0.6, 64) == 0.625
    assert rounded(0.9, 6) == 1


def test_the_path_buys_the_cheapest_time_first():
    a, b = Slot("units", "a"), Slot("weights", "b")
    clock = {"a": 1.0, "b": 1.0}
    effects = [
        Effect(a, 0.5, 0.04, {"a": 0.5}, 1.0),
        Effect(a, 0.25, 0.5, {"a": 0.25}, 1.0),
        Effect(b, Form(bits=8), 0.001, {"b": 0.5}, 0.4),
        Effect(b, Form(sparsity=0.9), 0.2, {"b": 0.1}, 0.2),
    ]
    plans = path_of(effects, clock, False)
    assert plans[:3] == [{}, {b: Form(bits=8)}, {b: Form(bits=8), a: 0.5}]
    assert plans[-1] == {b: Form(sparsity=0.9), a: 0.25}
    assert len(path_of(effects, clock, False, {b: Form(bits=8)})) == 4


def test_the_best_of_one_method_is_where_all_go_on_from():
    a, b, c = Slot("units", "a"), Slot("weights", "b"), Slot("units", "c")
    effects = [Effect(a, 0.5, 0.1, {"a": 0.5}, 1.0), Effect(b, Form(bits=8), 0.1, {"b": 0.5}, 1.0),
               Effect(c, 0.5, 0.1, {"c": 0.5}, 1.0)]  # fmt: skip
    search, calls = object.__new__(shrinking._Search), []
    search.latency_ms = search.most_bytes = None
    search._follow = lambda *arguments: calls.append(arguments)

    def candidate(method, ms, plan, holds=True):
        return shrinking._Candidate(shrinking.Attempt(method, "", 0.9, ms, 100, holds), None, plan)

    both, units = candidate("all methods", 2.0, {b: Form(bits=8)}), candidate("units", 1.5, {a: 0.5, c: 0.6})
    search.candidates = [candidate("original", 9.0, {}), both, units, candidate("ranks", 1.0, {a: 0.5}, holds=False)]
    search._go_on(effects, {"a": 1.0}, False)
    ((method, some, _, _, start),) = calls
    assert (method, start) == ("all methods", {a: 0.5, c: 0.6})
    assert [effect.slot for effect in some] == [a, b]  # of c another share was reached, half-way
    units.attempt = replace(units.attempt, ms=2.5)
    search._go_on(effects, {"a": 1.0}, False)
    assert len(calls) == 1  # all together were better


def test_layouts_in_int8_are_tried_where_they_keep_the_metric(monkeypatch):
    """Of the tolerances the largest that keeps the metric; networks of which it does not are laid out exactly."""
    monkeypatch.setattr(shrinking, "runtimes_of", lambda network: [network])

    def laid_out_(network, example, layout=EXACT):
        network.lost = layout.tolerance
        return "", ["0"] if layout.tolerance and not layout.floats else []

    monkeypatch.setattr(shrinking, "laid_out_", laid_out_)
    monkeypatch.setattr(shrinking, "restore_", lambda network: vars(network).pop("lost", None))

    def timings(networks, example, seconds):
        ms = [1.0 if not hasattr(network, "lost") else 0.5 if network.lost else 0.8 for network in networks]
        return [Timing(each, each, each) for each in ms]

    def kept(network):
        assert not torch.is_grad_enabled()  # else what is laid out would not run
        units = network[0].out_features
        return 1 - 2 * getattr(network, "lost", 0.0) - (0.07 if units < 32 else 0.0)

    monkeypatch.setattr(shrinking, "timings", timings)
    model, x = redundant(12, 32, 6), torch.randn(100, 12)
    result = fg.shrink(model, x, kept, keep=0.9, methods=["bits"], seconds=20)
    tried = [(attempt.tolerance, attempt.holds) for attempt in result.attempts if attempt.method == "bits"]
    assert tried[-1] == (0.05, True)
    assert [holds for _, holds in tried[:-1]] == [False] * shrinking.TOLERANCES.index(0.05)
    assert (result.winner.tolerance, result.winner.metric) == (0.05, 0.9)
    assert "fg.optimize_(model, x, tolerance=0.05)" in str(result)
    assert "int8 within 0.05" in result.winner.setting
    search = searching(model, x, kept, keep=0.9)
    search.layout = LayoutOptions(0.05)
    units = search._tried({Slot("units", "0"): 0.5}, "units")
    assert (units.attempt.tolerance, units.attempt.holds) == (0.0, True)  # 0.93, in int8 0.83
    assert [attempt.attempt.tolerance for attempt in search.candidates[-2:]] == [0.05, 0.0]
    search = searching(model, x, kept, keep=0.95)
    search.layout = LayoutOptions(0.05)
    assert not search._tried({Slot("units", "0"): 0.5}, "units").attempt.holds  # nor in floats, which are not laid out
    assert search.candidates[-1].attempt.tolerance == 0.05
    assert fg.shrink(model, x, kept, keep=0.9, methods=["units"], seconds=20).winner.tolerance == 0


def test_layers_that_cost_the_metric_stay_in_floats_in_a_layout_in_int8(monkeypatch):
    """Whatever their errors: those without which most of the metric comes back, and no more than it takes."""
    costs = {"0": 0.001, "2": 0.2, "4": 0.3, "6": 0.002}  # of the metric, in int8

    def laid_out_(network, example, layout=EXACT):
        network.in_int8 = set() if layout == EXACT else costs.keys() - set(layout.floats)
        return "", [name for name in ("0", "6", "4", "2") if name in network.in_int8]

    def timings(networks, example, seconds):
        return [Timing(*[1 - 0.1 * len(getattr(network, "in_int8", ()))] * 3) for network in networks]

    monkeypatch.setattr(shrinking, "runtimes_of", lambda network: [network])
    monkeypatch.setattr(shrinking, "laid_out_", laid_out_)
    monkeypatch.setattr(shrinking, "timings", timings)
    layers = [module for size in (8, 9, 10, 11) for module in (nn.Linear(size, size + 1), nn.ReLU())]
    model, x = nn.Sequential(*layers), torch.randn(100, 8)
    result = fg.shrink(
        model, x, lambda network: 1 - sum(costs[name] for name in getattr(network, "in_int8", ())), keep=0.9,
        methods=["bits"], seconds=20,
    )  # fmt: skip
    assert result.winner.floats == ("4", "2")
    assert (result.winner.metric, result.winner.setting) == (0.997, "laid out; int8 within 0.5 but for 4, 2")
    assert "in int8; of a file by fg.optimize_(model, x, tolerance=0.5, floats=['4', '2'])" in str(result)
    layouts = [attempt for attempt in result.attempts if attempt.setting.startswith("laid out; int8 within 0.5 but")]
    tried = [attempt.floats for attempt in layouts]
    assert tried == [("0",), ("6",), ("4",), ("2",), ("4", "2")]


def test_a_layer_alone_is_laid_out_as_in_the_model():
    layout = LayoutOptions(0.5, ("rnn.ih_l0", "head", "a.b.2"))
    assert layout.inside("rnn") == LayoutOptions(0.5, ("layer.ih_l0",))
    assert layout.inside("head") == layout.inside("head.0") == LayoutOptions(0.5, ("layer",))
    assert layout.inside("a.b") == LayoutOptions(0.5, ("layer.2",))
    assert layout.inside("rnn2") == LayoutOptions(0.5)


def searching(model, x, metric, keep):
    fit, held = Samples.of(x, None, 2000, model).split(0)
    return shrinking._Search(model, fit, held, metric, keep, None, None, 1, 20.0, False)


def test_the_best_of_each_method_takes_part_in_the_last_measurement():
    search = object.__new__(shrinking._Search)
    search.latency_ms = search.most_bytes = None

    def candidate(method, ms):
        return shrinking._Candidate(shrinking.Attempt(method, "", 0.9, ms, 100, True), nn.Identity())

    several = [candidate("all methods", ms) for ms in (1.0, 1.1, 1.2)]
    units = [candidate("units", ms) for ms in (1.5, 1.4)]
    search.candidates = [candidate("original", 9.0), *several, *units, candidate("layout", 2.0)]
    assert [c.attempt.ms for c in search._best(2)] == [1.0, 1.1, 2.0, 1.4]
    search._forget()
    assert [c.network is None for c in search.candidates] == [False] * 7
    search.candidates[1:1] = [candidate("all methods", ms) for ms in (0.7, 0.8, 0.9)]
    search._forget()
    assert [c.attempt.ms for c in search.candidates if c.network is None] == [1.5]


def test_a_method_is_alone_where_int8_is_not_on_top():
    """The report on methods alone holds those of one method: units in int8 are two."""
    model, x = redundant(12, 32, 6), torch.randn(100, 12)
    search = searching(model, x, "r2", keep=0.5)
    for method, tolerance, ms in (
        ("bits", 0.2, 3),
        ("units", 0.2, 1),
        ("units", 0.0, 2),
        *[("all methods", 0.0, 0.5)] * 7,
    ):
        network = copy.deepcopy(model)
        attempt = Attempt(method, f"{tolerance}", 1.0, ms, 100, True, tolerance)
        search.candidates.append(shrinking._Candidate(attempt, network))
    search._forget()
    alone = search._result().by_method
    assert (alone["bits"][0].tolerance, alone["units"][0].tolerance) == (0.2, 0.0)
    assert "all methods" not in alone


@pytest.mark.parametrize(("ms", "winner"), [(0.495, "bits"), (0.45, "all methods")])
def test_of_networks_that_are_as_fast_the_one_to_which_least_was_done_wins(monkeypatch, ms, winner):
    model, x = redundant(12, 32, 6), torch.randn(100, 12)
    search = searching(model, x, "r2", keep=0.5)
    del search.candidates[1:]
    times = {"bits": 0.5, "all methods": ms}
    for method, plan in (("bits", {}), ("all methods", {Slot("units", "0"): 0.5})):
        attempt = Attempt(method, "", 1.0, times[method], 100, True)
        search.candidates.append(shrinking._Candidate(attempt, copy.deepcopy(model), plan))
    ordered = [1.0, *sorted(times.values())]
    monkeypatch.setattr(shrinking, "timings", lambda networks, *_: [Timing(each, each, each) for each in ordered])
    assert search._result().winner.method == winner


def test_a_search_goes_back_by_what_was_lost():
    """Where what is lost is in proportion to the errors, fewer networks tell where the path ends."""
    search, tried = object.__new__(shrinking._Search), []
    search.whole, search.least, search.latency_ms, search.until = 1.0, 0.99, None, float("inf")
    errors = [1e-6 * 2**number for number in range(32)]
    plans = [{Slot("units", str(number)): 0.5} for number in range(32)]

    def attempt(plan, method):
        tried.append(plans.index(plan))
        metric = 1 - errors[tried[-1]]
        return shrinking._Candidate(Attempt(method, "", metric, 1.0, 100, metric >= 0.99), None)

    search._tried = attempt
    assert search._search("units", plans, errors) == (13, plans[14])
    assert tried == [16, 11, 13, 14]
    errors[:] = [1e-4 * 2**number for number in range(32)]
    tried.clear()
    assert search._search("units", plans, errors) == (6, plans[7])
    assert tried == [16, 6, 8, 7]  # by halves 16, 8, 4, 6, 7


def test_each_search_has_its_part_of_the_time(monkeypatch):
    """A search for all methods leaves time for each method alone."""
    model, x = redundant(12, 32, 6), torch.randn(100, 12)
    search = searching(model, x, "r2", keep=0.9)
    ends = {}
    monkeypatch.setattr(search, "_follow", lambda method, *_: ends.setdefault(method, search.until))
    effects = [
        Effect(Slot("units", "0"), 0.5, 0.1, {"0": 0.5}, 1.0),
        Effect(Slot("weights", "0"), Form(sparsity=0.5), 0.1, {"0": 0.5}, 1.0),
    ]
    monkeypatch.setattr(search, "_effects", lambda *_: effects)
    search.run(None, ["units", "connections"])
    assert list(ends) == ["all methods", "units", "connections"]
    parts = [(until - search.began) / 20 for until in ends.values()]  # none took any time, so that all have more
    assert parts == pytest.approx([2 / 5, 1 / 3, 1 / 2], abs=0.1)
    assert search.until == search.ends


def test_the_report_marks_what_was_found():
    attempts = [
        Attempt("original", "as it was", 1.0, 2.0, 100, True), Attempt("units", "a", 0.99, 1.0, 50, True),
        Attempt("units", "b", 0.5, 0.5, 40, False), Attempt("units", "c", 0.4, 0.9, 40, False),
    ]  # fmt: skip
    result = Shrunk(nn.Identity(), attempts[0], attempts[1], attempts, "accuracy", 0.9, 10, 1, True, 1.0)
    assert [attempt.setting for attempt in result.pareto()] == ["b", "a", "as it was"]
    assert "2x faster" in result.verdict()
    assert result.gains() == []
    object.__setattr__(result, "spent", {"units": 3.4, "bits": 1.0})
    assert result.table_notes()[-2] == "what each method gave: units x 2.00 in 3 s, bits nothing in 1 s"
    slower = copy.copy(result)
    object.__setattr__(slower, "winner", attempts[0])
    assert "not faster, left as it was" in slower.verdict()
    assert set(METHODS) == {"units", "bits", "ranks", "connections"}


def test_attention_layers_that_the_data_do_not_reach_and_packed_sequences_are_no_hindrance():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.memory = nn.MultiheadAttention(16, 2, batch_first=True)
            self.rnn, self.unused = nn.GRU(16, 8, batch_first=True), nn.Linear(16, 16)

        def forward(self, x):
            x = self.encoder(x)
            x = x + self.memory(x, x.flip(1), x.flip(1), need_weights=False)[0]
            lengths = torch.full((len(x),), x.shape[1])
            return self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[1][0]

    report = fg.shrink(Model(), torch.randn(40, 6, 16), seconds=3, progress=False)
    text = str(report)
    assert "unused stays: the data do not reach it" in text
    assert "memory stays: it reads several tensors" in text
    assert "rnn stays: it reads a PackedSequence, no tensor" in text
    assert "encoder.self_attn stays" not in text


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("of_labels", [(-1,), (-1, 1)])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("metric", ["accuracy", "agreement"])
def test_decisions_of_one_number_a_sample(shape, of_labels, probabilities, metric):
    class Model(nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign = sign

        def forward(self, x):
            y = self.sign * x[:, :1].view(shape)
            return y.sigmoid() if probabilities else y

    x = torch.randn(200, 3)
    y = (x[:, 0] > 0).long().view(of_labels)
    right, wrong = Model(1), Model(-1)
    judge = Judge(metric, right, Samples.of((x, y), None, 1000, right))
    assert judge(right) == 1
    assert judge(wrong) == 0


def test_outputs_that_do_not_fit_the_targets():
    model, x = nn.Linear(3, 2), torch.randn(20, 3)
    with pytest.raises(ValueError, match=r"r2 needs as many outputs as targets\. Got \(20, 2\) and \(20,\)"):
        Judge(None, model, Samples.of((x, torch.randn(20)), None, 1000, model))
    judge = Judge("accuracy", model, Samples.of((x, torch.zeros(20, 3, dtype=torch.long)), None, 1000, model))
    with pytest.raises(ValueError, match=r"accuracy needs outputs \(batch, classes\)"):
        judge(model)


def test_samples_are_drawn():
    x = torch.arange(1000.0)[:, None]
    drawn = Samples.of(x, None, 100, nn.Linear(1, 1), seed=3).inputs.tensor
    assert len(drawn) == 100
    assert drawn.max() > 900
    assert torch.equal(drawn, Samples.of(x, None, 100, nn.Linear(1, 1), seed=3).inputs.tensor)
