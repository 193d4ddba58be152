"""Quantisation by sampling: what is promised of the samples, the layers and the networks."""

import copy

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.compress.error_diffusion import diffuse_errors
from filigree.compress.weight_sampling import sample

KINDS = ["jittered", "stratified", "independent"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("per", ["layer", "row"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (20, 7)])
def test_counts_add_up_and_keep_signs(how, per, shape):
    w = torch.randn(shape)
    for samples in (0.01, 0.3, 1, 5.5):
        counts, scale = sample(w, samples, per, how, generator())
        each = max(1, round(samples * (w.numel() if per == "layer" else shape[1])))
        totals = counts.abs().sum(1) if per == "row" else counts.abs().sum()
        assert (totals == each).all()
        assert ((counts == 0) | (counts.sign() == w.sign())).all()
        assert scale.shape == ((shape[0],) if per == "row" else (1,))


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("per", ["layer", "row"])
def test_unbiased(how, per):
    w = torch.randn(4, 6)
    total = torch.zeros(4, 6)
    runs = 4000
    made = generator(1)
    for _ in range(runs):
        counts, scale = sample(w, 0.5, per, how, made)
        total += counts * scale.reshape(-1, 1)
    step = w.abs().sum(1, keepdim=True).max() / 3
    assert (total / runs - w).abs().max() < 5 * step / runs**0.5


def test_jittered_counts_are_the_nearest_integers():
    w = torch.randn(10, 30)
    for seed in range(20):
        counts, scale = sample(w, 2.0, "layer", "jittered", generator(seed))
        exact = w.abs() / scale
        assert ((counts.abs() == exact.floor()) | (counts.abs() == exact.ceil())).all()


def error(how, samples):
    w = torch.randn(30, 30, generator=generator(5))
    errors = []
    for seed in range(5):
        counts, scale = sample(w, samples, "layer", how, generator(seed))
        errors.append(float((counts * scale - w).abs().mean()))
    return sum(errors) / len(errors)


def test_the_error_falls_as_one_over_n_for_jittered_and_as_its_root_for_independent_samples():
    rates = {how: error(how, 4) / error(how, 64) for how in KINDS}
    assert 12 < rates["jittered"] < 20
    assert 12 < rates["stratified"] < 20
    assert 3 < rates["independent"] < 5


def test_zero_rows_stay_zero():
    w = torch.randn(5, 8)
    w[2] = 0
    for how in KINDS:
        for per in ("layer", "row"):
            counts, scale = sample(w, 1.0, per, how, generator())
            assert not counts[2].any()
            assert bool(scale.isfinite().all())


def test_diffused_errors_keep_the_outputs():
    torch.manual_seed(3)
    x = torch.randn(2000, 12) @ torch.randn(12, 60)  # correlated inputs, as those of a network are
    w = torch.randn(40, 60)
    own = x.T @ x / len(x)
    counts, scale = diffuse_errors(w, own, own, 0.5, False, 0.01, generator())
    assert int(counts.abs().sum()) <= 0.5 * w.numel()
    plain, its_scale = sample(w, 0.5, "layer", "jittered", generator())
    y = x @ w.T
    ours = float((x @ (counts * scale).T - y).norm() / y.norm())
    assert ours < 0.3 * float((x @ (plain * its_scale).T - y).norm() / y.norm())
    mask = torch.rand(40, 60) < 0.5
    assert not diffuse_errors(w, own, own, 0.5, True, 0.01, generator(), mask)[0][~mask].any()


def trained(sizes=(64, 100, 10)):
    torch.manual_seed(0)
    data = fg.data.load("digits")
    model = fg.models.mlp(list(sizes))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    fg.fit(model, data.train, optimizer=optimizer, epochs=30, batch_size=32, progress=False)
    return model, data


def accuracy(model, data):
    return fg.evaluate(model, data.test)["accuracy"]


def test_a_network_keeps_its_accuracy_at_an_eighth_of_its_weights():
    model, data = trained()
    before = accuracy(model, data)
    made, calibrated = fg.models.mlp([64, 100, 10]), fg.models.mlp([64, 100, 10])
    for net in (made, calibrated):
        net.load_state_dict(model.state_dict())
    report = fg.compress_(made, fg.MonteCarlo(samples=0.12))
    assert "samples" in str(report)
    fg.compress_(calibrated, fg.MonteCarlo(samples=0.12), data.train)
    kept = sum(layer.nnz for layer in calibrated.modules() if hasattr(layer, "nnz"))
    assert kept <= 0.12 * (6400 + 1000)
    assert accuracy(calibrated, data) > 0.93 * before
    assert accuracy(calibrated, data) > accuracy(made, data)


@pytest.mark.parametrize("calibrate", ["error_diffusion", "rms", "none"])
@pytest.mark.parametrize("per", ["layer", "neuron"])
def test_many_samples_are_the_network(calibrate, per):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 5),
    ).eval()  # fmt: skip
    x = torch.randn(50, 2, 8, 8)
    expected = model(x).detach()
    fg.compress_(model, fg.MonteCarlo(samples=500, per=per, calibrate=calibrate), x)
    assert (model(x) - expected).abs().max() < 0.02 * expected.abs().max()


def test_groups_activations_and_sparse_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 20), nn.ReLU(),
                          nn.Linear(20, 5)).eval()  # fmt: skip
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["0", "3"])
    before = [(layer.values != 0).sum() for layer in model.modules() if hasattr(layer, "values")]
    x = torch.randn(60, 4, 6, 6)
    expected = model(x).detach()
    places = set(model[3].flat_indices().tolist())
    fg.compress_(model, fg.MonteCarlo(samples=8, activations=20), x)
    assert (model(x) - expected).abs().max() < 0.15 * expected.abs().max()
    kept = model[3].integers().flatten().nonzero().squeeze(1).tolist()
    assert set(kept) <= places
    assert len(before) == 2
    assert model[3].activation is not None


def test_saved_loaded_and_deterministic(tmp_path):
    x = torch.randn(40, 30)
    outputs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = fg.models.mlp([30, 20, 5])
        fg.compress_(model, fg.MonteCarlo(samples=0.5, activations=4, seed=3), x)
        outputs.append(model(x))
    assert torch.equal(*outputs)
    fg.save(model, tmp_path / "m.safetensors")
    assert torch.equal(fg.load(tmp_path / "m.safetensors")(x), outputs[0])


def test_bad_input_leaves_the_model_as_it_was():
    model = fg.models.mlp([30, 20, 5])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="samples"):
        fg.MonteCarlo(samples=0)
    with pytest.raises(ValueError, match="need data"):
        fg.compress_(model, fg.MonteCarlo(activations=2))
    with pytest.raises(ValueError, match="no pattern for 'fc2'"):
        fg.compress_(model, fg.MonteCarlo(samples={"fc1": 0.1}))
    with torch.no_grad():
        model.fc2.weight.zero_()
    with pytest.raises(ValueError, match=r"'fc2' are all zero"):
        fg.compress_(model, fg.MonteCarlo())
    with torch.no_grad():
        model.fc2.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"'fc2' are not finite"):
        fg.compress_(model, fg.MonteCarlo())
    with torch.no_grad():
        model.fc2.weight.copy_(before["fc2.weight"])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("data", [None, torch.randn(40, 50, generator=torch.Generator().manual_seed(0))])
def test_samples_are_counted_by_connections(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 40))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.1)))
    connections = model[0].nnz
    fg.compress_(model, fg.MonteCarlo(samples=2), data)
    assert 1.5 * connections < model[0].samples <= 2 * connections


def test_rms_of_grouped_convolutions():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, groups=2)
    x = torch.randn(64, 4, 8, 8) * torch.tensor([1, 5, 0.1, 3.0]).view(1, 4, 1, 1)
    model = nn.Sequential(copy.deepcopy(conv))
    fg.compress_(model, fg.MonteCarlo(samples=200.0, calibrate="rms", correct_bias=False), x)
    torch.testing.assert_close(model[0].input_scale, 1 / x.square().mean((0, 2, 3)).sqrt())
    torch.testing.assert_close(model[0].dense().weight, conv.weight, atol=0.05, rtol=0.05)
    torch.testing.assert_close(model(x), model[0].dense()(x), atol=1e-4, rtol=1e-4)
