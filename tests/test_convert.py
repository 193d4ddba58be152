import pytest
import torch
from torch import nn

import filigree as fg
from filigree.config import Config
from filigree.measure.timing import Timing
from filigree.nn import ChannelMajorConv2d, MaskedLinear, SparseConv2d, SparseLinear


def test_converts_in_place_and_reports():
    model = fg.models.mlp([784, 1000, 1000, 1000, 10], dropout=0.3)
    report = fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=20)))
    assert report.parameters == (2_797_010, 128_690)
    assert [c.note for c in report.changes] == ["", "", "", "stays dense (p = 1)"]
    assert isinstance(model.fc4, nn.Linear)
    assert isinstance(model.fc1, SparseLinear)
    text = str(report)
    assert "SparseLinear(4.55%) + ReLU" in text
    assert "2,797,010 -> 128,690" in text


def test_relu_is_fused_only_where_nothing_else_sees_it():
    model = fg.models.mlp([9, 8, 7, 3])
    x = torch.randn(4, 9)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    assert isinstance(model.relu1, nn.Identity)
    assert bool((model.fc1(x) >= 0).all())
    watched = fg.models.mlp([9, 8, 7, 3])
    watched.relu1.register_forward_hook(lambda *_: None)
    fg.convert_(watched, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    assert isinstance(watched.relu1, nn.ReLU)
    plain = fg.models.mlp([9, 8, 7, 3])
    fg.convert_(plain, fg.Sparse(fg.ErdosRenyi(density=0.5), fuse=False))
    torch.testing.assert_close(plain(x), model(x))


def test_masked_computes_the_same():
    x = torch.randn(4, 9)
    models = []
    for masked in (False, True):
        model = fg.models.mlp([9, 8, 7, 3])
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5), masked=masked), where="fc[12]")
        models.append(model)
    models[1].fc3.load_state_dict(models[0].fc3.state_dict())
    assert isinstance(models[1].fc1, MaskedLinear)
    torch.testing.assert_close(models[0](x), models[1](x))


def test_keep_holds_the_weights():
    model = fg.models.mlp([9, 8, 3])
    weight = model.fc1.weight.detach().clone()
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5), init="keep"))
    dense = model.fc1.dense()[0].weight
    assert bool(((dense == weight) | (dense == 0)).all())


@pytest.mark.parametrize("masked", [False, True])
def test_largest_keeps_the_largest_weights(masked):
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(24, 5))
    weights = [model[i].weight.detach().clone() for i in (0, 2)]
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3), init="largest", masked=masked))
    for i, weight in zip((0, 2), weights, strict=True):
        least = weight.abs().flatten().topk(model[i].nnz).values[-1]
        assert 0 < model[i].nnz < weight.numel()
        assert torch.equal(model[i].dense().weight, weight * (weight.abs() >= least))


def test_a_number_is_the_standard_deviation_of_the_values():
    model = fg.models.mlp([900, 400, 3])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.1), init=0.1), "fc1")
    assert model.fc1.values.std().item() == pytest.approx(0.1, rel=0.02)


def test_where():
    model = fg.models.mlp([9, 8, 7, 3])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)), where=lambda name, module: module.out_features == 7)
    assert [type(m) for m in (model.fc1, model.fc2, model.fc3)] == [nn.Linear, SparseLinear, nn.Linear]


@pytest.fixture
def stopwatch(monkeypatch):
    """Timings by what a layer stores, so that the choice does not hang on the machine."""
    seen = []

    def time_interleaved(works, seconds):
        held = [[cell.cell_contents for cell in work.__closure__] for work in works]
        modules = [next(part for part in parts if isinstance(part, nn.Module)) for parts in held]
        stored = [sum(p.numel() for p in module.parameters()) for module in modules]
        seen.append(stored)
        return [Timing(n, n, n) for n in (1.0, 2.0 if stored[1] >= 100 else 0.5)]  # small dense layers are fast

    monkeypatch.setattr("filigree.nn.sparse.sparse.time_interleaved", time_interleaved)
    return seen


def test_measure_keeps_what_is_faster_dense(tmp_path, stopwatch):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3000), nn.ReLU(), nn.Linear(3000, 3000))
    report = fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.01)), ["0", "4"], measure=64)
    assert type(model[0]) is nn.Linear
    assert isinstance(model[1], nn.ReLU)
    assert isinstance(model[4], SparseLinear)
    assert report.changes[0].note.startswith("stays dense: ")
    assert "ms dense at batch 64" in report.changes[1].note
    fg.save(model, tmp_path / "m")
    fresh = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3000), nn.ReLU(), nn.Linear(3000, 3000))
    x = torch.randn(2, 8)
    assert torch.equal(fg.load(tmp_path / "m", into=fresh)(x), model(x))
    assert len(stopwatch) == 2
    with pytest.raises(ValueError, match="Dropout cannot choose by measurement"):
        fg.convert_(fg.models.mlp([3, 4, 2], 0.5), fg.Dropout(), measure=True)


def test_measure_with_an_example(stopwatch):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 3, padding=1), nn.Flatten(), nn.Linear(200, 9))
    x = torch.randn(6, 3, 5, 5)
    report = fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.1)), measure=x)
    assert type(model[0]) is ChannelMajorConv2d  # dense, in the memory order of the sparse one
    assert isinstance(model[2], SparseConv2d)
    assert isinstance(model[4], SparseLinear)
    assert all("at batch 6" in change.note for change in report.changes)
    fresh = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(50, 9))
    with pytest.raises(ValueError, match="'0' has no width: give an example"):
        fg.convert_(fresh, fg.Sparse(fg.ErdosRenyi(density=0.1)), measure=True)
    with pytest.raises(ValueError, match="at least 1, or an example"):
        fg.convert_(fresh, fg.Sparse(fg.ErdosRenyi(density=0.1)), measure=-1)


def test_measure_reads_the_input_in_the_order_of_the_model(monkeypatch):
    """Both contestants get what the layer gets in the model, and all leading sides are rows."""
    seen = []

    def time_interleaved(works, seconds):
        for work in works:
            tensors = [
                part for part in (cell.cell_contents for cell in work.__closure__) if isinstance(part, torch.Tensor)
            ]
            seen.append(sorted((tuple(t.shape), t.stride()) for t in tensors))
            assert all(gradient.isfinite().all() for gradient in work())
        return [Timing(1, 1, 1), Timing(2, 2, 2)]

    monkeypatch.setattr("filigree.nn.sparse.sparse.time_interleaved", time_interleaved)
    sparse = fg.Sparse(fg.ErdosRenyi(density=0.5))
    example = torch.randn(6, 4, 3).transpose(0, 1)
    report = fg.convert_(nn.Sequential(nn.Linear(3, 5)), sparse, measure=example)
    assert report.changes[0].note.endswith("at batch 24")
    with_input = ((4, 6, 3), example.stride())
    assert all(with_input in tensors for tensors in seen)
    assert seen[0] == seen[1]  # the gradient, too
    seen.clear()
    report = fg.convert_(nn.Sequential(nn.Linear(3, 5)), sparse, measure=True)
    assert report.changes[0].note.endswith("at batch 128")
    assert seen == [[((128, 3), (3, 1)), ((128, 5), (5, 1))]] * 2


def test_shared_modules_and_tied_weights():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    assert model[0] is model[2]
    assert isinstance(model[1], nn.ReLU)  # used twice: not fused
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    report = fg.convert_(tied, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    assert all("shared" in c.note for c in report.changes)
    assert tied[1].weight is tied[0].weight


def test_attention_keeps_the_projection_that_it_reads_itself():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)), where="linear?")
    assert isinstance(model.linear1, SparseLinear)
    assert type(model.self_attn) is nn.MultiheadAttention
    x = torch.randn(2, 3, 16)
    with torch.no_grad():  # where torch takes a shortcut past the modules
        once = model(x)
    torch.testing.assert_close(once, model.requires_grad_()(x).detach())


def test_dtype_device_mode_and_gradient_flags_are_kept():
    model = nn.Sequential(nn.Linear(6, 5, dtype=torch.float64)).eval().requires_grad_(False)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)))
    assert model[0].values.dtype == torch.float64
    assert not model[0].training
    assert not model[0].values.requires_grad


def test_the_seed_decides():
    def values(seed):
        model = fg.models.mlp([9, 8, 7, 3])
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5), seed=seed))
        return torch.cat([model.fc1.values, model.fc2.values])

    assert torch.equal(values(1), values(1))
    assert not torch.equal(values(1), values(2))


def test_configs_round_trip():
    config = fg.Sparse(fg.ErdosRenyi(epsilon=20, replace=True), masked=True, seed=3)
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fg.convert_(nn.Linear(2, 2), fg.Sparse(fg.ErdosRenyi(1))), "the model is itself a Linear"),
        (lambda: fg.convert_(nn.ReLU(), fg.Sparse(fg.ErdosRenyi(1))), "no module was selected"),
        (lambda: fg.convert_(fg.models.mlp([3, 2]), fg.Sparse(fg.ErdosRenyi(1)), ["fc9"]), "'fc9' matches no module"),
        (lambda: fg.convert_(fg.models.mlp([3, 2]), "sparse"), "config must be a conversion"),
        (lambda: fg.ErdosRenyi(epsilon=0), "epsilon must be greater than 0. Got 0"),
        (lambda: fg.ErdosRenyi(epsilon=-2), "epsilon must be greater than 0. Got -2"),
        (lambda: fg.ErdosRenyi(density=1.5), "density must be less than or equal to 1"),
        (lambda: fg.ErdosRenyi(), "exactly one of epsilon and density"),
        (lambda: fg.ErdosRenyi(epsilonn=2), "unknown field 'epsilonn'"),
        (lambda: fg.Sparse(topology="er"), "topology must be"),
        (lambda: Config.from_dict({"kind": "Spars"}), "did you mean Sparse"),
        (lambda: fg.models.mlp([3]), "at least two widths"),
        (lambda: fg.models.build("mpl"), "name must be one of"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("masked", [False, True])
def test_what_was_measured_is_rebuilt_layer_by_layer(masked, stopwatch, tmp_path, monkeypatch):
    """A topology for a whole network leaves other layers dense when it draws for fewer of them."""
    sides = [784, 300, 300, 10]
    monkeypatch.setattr(
        "filigree.nn.sparse.sparse._is_faster", lambda sparse, layer, x: (len(layer.bias) == 300, "measured")
    )
    model = fg.models.mlp(sides)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyiKernel(density=0.2), masked=masked), measure=True)
    kinds = [type(model.get_submodule(name)) for name in ("fc1", "fc2", "fc3")]
    fg.save(model, tmp_path / "m")
    loaded = fg.load(tmp_path / "m")
    x = torch.randn(5, 784)
    torch.testing.assert_close(loaded(x), model(x))
    assert [type(loaded.get_submodule(name)) for name in ("fc1", "fc2", "fc3")] == kinds
    assert len(set(kinds)) == 2


def test_a_conversion_that_fails_midway_changes_nothing():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Conv2d(1, 2, 3))
    before = list(model)
    with pytest.raises(ValueError, match="feedback is for linear layers"):
        fg.convert_(model, fg.Asymmetric(feedback=5))
    assert all(one is two for one, two in zip(model, before, strict=True))
    assert fg.convert.conversions(model) == []


class OfTwo(nn.Module):
    """Takes two inputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, y):
        return self.a(x) + self.b(y)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)), measure=x),
        lambda model, x: fg.compress_(model, fg.MonteCarlo(), x),
        lambda model, x: fg.compress_(model, fg.FitStructured(fg.ACDC()), x),
    ],
)
def test_data_that_the_model_does_not_run_on_are_refused(call):
    message = (
        r"^\w+: the model does not run on the data: OfTwo.forward\(\) missing 1 required positional argument: 'y'$"
    )
    with pytest.raises(ValueError, match=message):
        call(OfTwo(), torch.randn(8, 4))


def test_a_guess_of_the_units_before_a_dropout_is_told_when_it_is_wrong():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.drop, self.body = nn.Linear(16, 4), nn.Dropout(0.2), nn.Linear(8, 16)

        def forward(self, x):
            return self.head(self.drop(self.body(x)))

    model = Reversed()
    fg.convert_(model, fg.GuidedDropout())
    with pytest.raises(ValueError, match=r"last side must be its 4 units. Got .3, 16.. GuidedDropout takes"):
        model(torch.randn(3, 8))


def test_a_layer_says_how_wide_it_is_not_its_parts():
    for make in (fg.Fastfood(), fg.ACDC(), fg.LowRank(rank=2)):
        model = fg.models.mlp([64, 100, 10], activation="tanh", dropout=0.3)
        if isinstance(make, fg.LowRank):
            fg.compress_(model, make, where="fc1")
        else:
            fg.convert_(model, make, where="fc1")
        fg.convert_(model, fg.Noisy("NAH"))
        fg.convert_(model, fg.GuidedDropout())
        assert model(torch.randn(3, 64)).shape == (3, 10)
    for kind in (nn.LSTM, nn.GRU):
        model = nn.ModuleDict({"rnn": kind(8, 16, bidirectional=True), "out": nn.Sequential(nn.Tanh())})
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)))
        fg.convert_(model, fg.Noisy("NAH"), where="out.0")
        assert model["out"](model["rnn"](torch.randn(4, 2, 8))[0]).shape == (4, 2, 32)
    images = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Dropout(0.5))
    with pytest.raises(ValueError, match="'1' must follow a linear layer"):
        fg.convert_(images, fg.GuidedDropout())


def test_a_module_that_says_out_channels_and_is_no_convolution():
    class Block(nn.Module):
        def __init__(self, kernel_size):
            super().__init__()
            self.out_channels, self.kernel_size = 8, kernel_size
            self.conv, self.act = nn.Conv2d(3, 8, 3), nn.Tanh()

        def forward(self, x):
            return self.act(self.conv(x))

    for kernel_size in (None, 3):
        for config in (fg.Noisy(), fg.GuidedDropout()):
            model = nn.Sequential(Block(kernel_size), nn.Flatten(), nn.Linear(128, 8), nn.Dropout(0.5))
            fg.convert_(model, config)
            model(torch.randn(2, 3, 6, 6))
        with pytest.raises(ValueError, match="Mollified"):  # in one line: nothing in it can be
            fg.convert_(nn.Sequential(Block(kernel_size)), fg.Mollified())
