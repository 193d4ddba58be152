"""Convolutions of low rank, and low ranks that are fitted to what layers read."""

import copy

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.compress.one_shot import moments, products
from filigree.nn import LowRankConv2d, LowRankLinear

CONVOLUTIONS = {
    "padded": lambda: nn.Conv2d(3, 8, 3, padding=1),
    "uneven": lambda: nn.Conv2d(6, 10, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(1, 0), bias=False),
    "of one tap": lambda: nn.Conv2d(5, 7, 1),
    "by name": lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"),
}


@pytest.fixture(params=CONVOLUTIONS)
def conv(request):
    torch.manual_seed(0)
    return CONVOLUTIONS[request.param]()


def images(conv, samples=2):
    return torch.randn(samples, conv.in_channels, 9, 11, generator=torch.Generator().manual_seed(1))


# -- convolutions ------------------------------------------------------------------------------------------------------


def test_of_a_convolution_it_is_the_truncated_decomposition_of_its_matrix(conv):
    layer = LowRankConv2d.like(conv, 3)
    u, s, v = torch.linalg.svd(conv.weight.detach().flatten(1), full_matrices=False)
    expected = ((u[:, :3] * s[:3]) @ v[:3]).view_as(conv.weight)
    torch.testing.assert_close(layer.dense().weight, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.weight, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(images(conv)), layer.dense()(images(conv)), rtol=1e-4, atol=1e-5)
    assert (layer.in_channels, layer.out_channels, layer.rank) == (conv.in_channels, conv.out_channels, 3)
    whole = LowRankConv2d.like(conv, min(len(conv.weight), conv.weight[0].numel()))
    torch.testing.assert_close(whole(images(conv)), conv(images(conv)), rtol=1e-4, atol=1e-5)


def test_gradients_of_a_convolution(conv):
    layer, x = LowRankConv2d.like(conv.double(), 2), images(conv, 1)[:, :, :5, :6].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


def test_no_images():
    assert LowRankConv2d(3, 8, 3, 2, padding=1)(torch.randn(0, 3, 5, 5)).shape == (0, 8, 5, 5)


def test_files_and_exports_of_a_convolution(tmp_path, conv):
    model, x = nn.Sequential(copy.deepcopy(conv), nn.ReLU()).eval(), images(conv)
    report = fg.compress_(model, fg.LowRank(2), where="0")
    before, after = report.parameters
    assert after < before
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors", into=nn.Sequential(copy.deepcopy(conv), nn.ReLU()).eval())
    assert torch.equal(again(x), model(x))
    if conv.padding_mode == "zeros":
        assert "0.down" in str(fg.export(model, tmp_path / "m.c", x[:1]))
    pytest.importorskip("onnxruntime")
    assert fg.export(model, tmp_path / "m.onnx", x, seconds=0.001).relative < 1e-4


def test_all_layers_that_gain_are_taken_and_grouped_ones_are_left():
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 3, groups=32), nn.Flatten(), nn.Linear(128, 64), nn.Linear(64, 3)
    )
    report = fg.compress_(model, fg.LowRank(4))
    assert [change.name for change in report.changes] == ["0", "3"]
    assert (type(model[0]), type(model[1]), type(model[3])) == (LowRankConv2d, nn.Conv2d, LowRankLinear)
    assert fg.compress_(nn.Sequential(nn.Conv2d(16, 32, 3)), fg.LowRank(energy=0.5)).changes[0].after


def test_ranks_are_at_most_full_and_convolutions_have_one_group():
    assert LowRankLinear.like(nn.Linear(4, 6), 10).rank == 4
    assert LowRankConv2d.like(nn.Conv2d(2, 4, 1), 10).rank == 2
    for make, message in (
        (lambda: LowRankConv2d.like(nn.Conv2d(4, 4, 3, groups=2), 2), "must have one group. Got 2"),
        (lambda: LowRankConv2d(4, 4, 3, rank=0), "rank must be at least 1. Got 0"),
        (lambda: LowRankLinear(4, 4, 0), "rank must be at least 1. Got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("config", [fg.LowRank(4), fg.LowRank(energy=0.9), fg.FitStructured(fg.LowRank(4))], ids=str)
def test_types_are_kept(dtype, config):
    model = nn.Sequential(nn.Linear(20, 16), nn.Unflatten(1, (16, 1, 1)), nn.Conv2d(16, 12, 1)).to(dtype)
    x = torch.randn(50, 20).to(dtype)
    fg.compress_(model, config, x, where=["0", "2"])
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(x).dtype == dtype


def test_weights_that_are_not_finite_are_named():
    model = nn.Sequential(nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    for config in (fg.LowRank(2), fg.FitStructured(fg.LowRank(2))):
        with pytest.raises(ValueError, match="the weights of '0' must be finite"):
            fg.compress_(model, config, torch.randn(20, 8), where="0")


def test_it_has_the_settings_of_a_convolution(conv):
    layer = LowRankConv2d.like(conv, 2)
    for name in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "transposed"):
        assert getattr(layer, name) == getattr(conv, name)
    with pytest.raises(ValueError, match="must follow a linear layer, not a convolution"):
        fg.convert_(nn.Sequential(layer, nn.Dropout()), fg.GuidedDropout(), where="1")


def test_after_pruning_the_dense_equivalent_has_both_biases():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 10)
    ).eval()
    fg.compress_(model, fg.LowRank(6), where="2")
    x = torch.randn(200, 3, 8, 8)
    fg.compress_(model, fg.MagnitudePruning(0.5), x)
    low_rank, y = model[2], model[:2](x)
    assert low_rank.down.bias is not None
    assert (low_rank.in_channels, low_rank.rank, low_rank.out_channels) == (8, 3, 12)
    torch.testing.assert_close(low_rank(y), low_rank.dense()(y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [fg.LowRank(4), fg.FitStructured(fg.LowRank(4))], ids=["weights", "data"])
def test_optimize_lays_out_both_factors(config):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 32)).eval()
    x = torch.randn(20, 8, 8, 8)
    fg.compress_(model, config, x)
    assert not any(module.training for module in model.modules())
    expected = model(x)
    report = fg.optimize_(model, x, seconds=0.001)
    assert {layer.name for layer in report.layers} == {"0.down", "0.up", "3.down", "3.up"}
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


# -- fitted to data ----------------------------------------------------------------------------------------------------


def correlated(samples, features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator) * 0.6 ** torch.arange(features)[:, None]
    return torch.randn(samples, features, generator=generator) @ mixing + 1


def lost(layer, dense, x):
    with torch.no_grad():
        return float((layer(x) - dense(x)).square().sum())


def test_the_fit_is_reduced_rank_regression():
    """Of one layer the least possible: what the singular values beyond the rank have of the outputs' variance."""
    torch.manual_seed(0)
    dense, x = nn.Linear(20, 12), correlated(4000, 20)
    model = nn.Sequential(copy.deepcopy(dense))
    report = fg.compress_(model, fg.FitStructured(fg.LowRank(3)), x, where="0")
    with torch.no_grad():
        y = dense(x)
        values = torch.linalg.svdvals((y - y.mean(0)).double())
    least = float(values[3:].square().sum())
    assert least <= lost(model, dense, x) < 1.2 * least + 1e-6  # the damping is 1% of the mean variance
    assert lost(model, dense, x) < 0.5 * lost(LowRankLinear.like(dense, 3), dense, x)
    noted = float(report.changes[0].note.split()[-1])
    assert noted == pytest.approx((least / float(values.square().sum())) ** 0.5, rel=0.2)


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_are_fitted_too(bias):
    torch.manual_seed(0)
    dense = nn.Conv2d(4, 12, 3, padding=1, bias=bias)
    x = correlated(300 * 25, 4).view(300, 25, 4).transpose(1, 2).reshape(300, 4, 5, 5)
    model = nn.Sequential(copy.deepcopy(dense))
    fg.compress_(model, fg.FitStructured(fg.LowRank(3)), x, where="0")
    assert (model[0].up.bias is not None) == bias
    assert lost(model, dense, x) < 0.8 * lost(LowRankConv2d.like(dense, 3), dense, x)


def test_each_layer_makes_up_for_those_before_it(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5))
    x, unseen = correlated(2000, 30), correlated(500, 30, seed=1)
    whole, plain, fitted = (copy.deepcopy(model) for _ in range(3))
    fg.compress_(plain, fg.LowRank(0.25), where=["0", "2"])
    fg.compress_(fitted, fg.FitStructured(fg.LowRank(0.25)), x, where=["2", "0"])
    assert lost(fitted, whole, unseen) < 0.9 * lost(plain, whole, unseen)
    fg.save(fitted, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors", into=copy.deepcopy(model))
    assert torch.equal(again(unseen), fitted(unseen))


def test_wide_matrices_are_fitted_in_parts_of_their_columns(monkeypatch):
    torch.manual_seed(0)
    dense, x = nn.Linear(24, 12), correlated(3000, 24)
    together = nn.Sequential(copy.deepcopy(dense))
    fg.compress_(together, fg.FitStructured(fg.LowRank(4)), x, where="0")
    for module in (products, moments):
        monkeypatch.setattr(module, "WIDEST", 10)
    apart = nn.Sequential(copy.deepcopy(dense))
    fg.compress_(apart, fg.FitStructured(fg.LowRank(4)), x, where="0")
    assert not torch.equal(apart[0].weight, together[0].weight)
    assert lost(together, dense, x) <= lost(apart, dense, x) < lost(LowRankLinear.like(dense, 4), dense, x)


@pytest.mark.parametrize("rank", [12, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_full_rank_computes_the_same(rank, dtype):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 12)).to(dtype), correlated(500, 20).to(dtype)
    expected = model(x).detach()
    fg.compress_(model, fg.FitStructured(fg.LowRank(rank)), x, where="0")
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)


def test_hooks_act_once():
    """Layers behind one with hooks read what it gives with them."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20)).eval(), torch.randn(2000, 20)
    model[0].register_forward_hook(lambda layer, inputs, output: 2 * output)
    model[2].register_forward_pre_hook(lambda layer, inputs: (3 * inputs[0],))
    expected = model(x).detach()
    fg.compress_(model, fg.FitStructured(fg.LowRank(20)), x, where=["0", "2"])
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)


def test_layers_that_would_grow_stay_where_none_are_named():
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), torch.randn(200, 64)
    report = fg.compress_(model, fg.FitStructured(fg.LowRank(16)), x)
    assert [change.name for change in report.changes] == ["0"]
    report = fg.compress_(model, fg.FitStructured(fg.LowRank(16)), x, where="2")
    assert report.changes[0].note.startswith("larger than dense, error of the rank")
    with pytest.raises(ValueError, match="no layer would gain by FitStructured"):
        fg.compress_(nn.Sequential(nn.Linear(64, 1)), fg.FitStructured(fg.LowRank(16)), x)


def test_what_cannot_be_fitted_is_said_and_the_model_stays():
    class TakesOne(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(20, 20), nn.Linear(20, 20)

        def forward(self, x):
            return self.used(x)

    model = TakesOne()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for data, where, message in (
        (torch.randn(50, 20), "idle", "FitStructured: the data do not reach 'idle'"),
        (torch.randn(50, 19), "used", "FitStructured: the model does not run on the data"),
        (torch.full((50, 20), torch.nan), "used", "data must be finite"),
        (None, "used", "data are needed"),
    ):
        with pytest.raises(ValueError, match=message):
            fg.compress_(model, fg.FitStructured(fg.LowRank(2)), data, where=where)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    report = fg.compress_(model, fg.FitStructured(fg.LowRank(2)), torch.randn(50, 20))
    assert [change.note for change in report.changes if change.name == "idle"] == [
        "left whole: the data do not reach it"
    ]
    assert (type(model.used), type(model.idle)) == (LowRankLinear, nn.Linear)
