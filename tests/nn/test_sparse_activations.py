"""`activations=`: sparse layers that read and write 16 bits, alone and in a sequence."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import filigree as fg
from filigree.nn import FastDropout, FeatureMajorLinear, SparseLinear, SparseSequential
from filigree.nn.sparse import chain_plan

both_types = pytest.mark.parametrize("activations", ["bfloat16", "float16"])


def layer_of(ins, outs, activations, **options):
    layer = SparseLinear(ins, outs, fg.ErdosRenyi(density=0.4), activations=activations, **options)
    with torch.no_grad():
        layer.bias.normal_()
    return layer


class Rounded(nn.Module):
    """The dense reference: a linear layer of rounded inputs, its output rounded."""

    def __init__(self, layer):
        super().__init__()
        self.dense, self.short = layer.dense(), getattr(torch, layer.activations)

    def forward(self, x):
        return self.dense(x.to(self.short).float()).to(self.short).to(x.dtype)


def gradients(module, x, dy):
    x = x.detach().requires_grad_()
    y = module(x)
    y.backward(dy)
    return y.detach(), x.grad


@both_types
@pytest.mark.parametrize("shape", [(0, 13), (1, 13), (70, 13), (3, 5, 13)])
@pytest.mark.parametrize("relu", [False, True])
def test_equals_the_dense_layer_of_rounded_inputs(activations, shape, relu):
    torch.manual_seed(0)
    layer = layer_of(13, 9, activations, relu=relu)
    short = getattr(torch, activations)
    reference = Rounded(layer)
    x, dy = torch.randn(shape), torch.randn(*shape[:-1], 9).to(short).float()  # a gradient that rounding leaves alone
    (y, dx), (expected, expected_dx) = gradients(layer, x, dy), gradients(reference, x, dy)
    assert y.dtype is dx.dtype is torch.float32
    near = torch.finfo(short).eps  # sums in another order may round to the neighbour
    torch.testing.assert_close(y, expected, rtol=near, atol=1e-5)
    torch.testing.assert_close(dx, expected_dx, rtol=near, atol=1e-5)
    weight = reference.dense[0] if relu else reference.dense
    places = layer.flat_indices()
    torch.testing.assert_close(layer.values.grad, weight.weight.grad.flatten()[places], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad, weight.bias.grad, rtol=1e-5, atol=1e-4)
    assert torch.equal(layer(x.to(short)), y.to(short))


@both_types
def test_keeps_the_input_in_16_bits_for_the_backward_pass(activations):
    layer = layer_of(13, 9, activations)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(70, 13, requires_grad=True))
    assert [t.dtype for t in saved if t.shape == (70, 13)] == [getattr(torch, activations)]


@both_types
def test_a_sequence_is_one_call_and_equals_its_layers(activations, monkeypatch):
    calls = []
    monkeypatch.setattr(
        chain_plan,
        "linear_chain",
        lambda links, x, *args, run=chain_plan.linear_chain, **options: (
            calls.append((len(links), x.dtype)) or run(links, x, *args, **options)
        ),
    )
    layers = [layer_of(20, 30, activations), nn.ReLU(), layer_of(30, 17, activations, relu=True)]
    layers.append(FeatureMajorLinear(17, 5))
    model = fg.nn.SparseSequential(*layers)
    alone = nn.Sequential(*copy.deepcopy(layers))
    for x in (torch.randn(40, 20), torch.randn(2, 20, 20)):
        (y, dx), (expected, expected_dx) = (gradients(m, x, torch.ones(*x.shape[:-1], 5)) for m in (model, alone))
        assert y.dtype is dx.dtype is torch.float32
        torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
        torch.testing.assert_close(dx, expected_dx, rtol=0.02, atol=0.02)
        torch.testing.assert_close(layers[0].values.grad, alone[0].values.grad, rtol=0.02, atol=0.05)
        model.zero_grad(), alone.zero_grad()
    assert calls == [(3, getattr(torch, activations))] * 2
    short = model[:3](torch.randn(4, 20).to(getattr(torch, activations)))
    assert short.dtype is getattr(torch, activations)


def test_layers_of_other_activations_end_a_sequence():
    model = SparseSequential(*(layer_of(8, 8, kind) for kind in ("bfloat16", None, "float16", "float16")))
    x = torch.randn(5, 8)
    expected = x
    for layer in model:
        expected = layer(expected)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_a_sequence_as_one_call(dtype, monkeypatch):
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 8))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)))
    alone = nn.Sequential(*copy.deepcopy(list(model)))
    x, dy = torch.randn(40, 20), torch.randn(40, 8).to(dtype)
    with torch.autocast("cpu", dtype):
        (y, dx), (expected, expected_dx) = (gradients(m, x, dy) for m in (model, alone))
        monkeypatch.setattr(SparseLinear, "forward", None)  # nobody calls a layer
        assert torch.equal(model(x), y)
    assert y.dtype is dtype
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(dx, expected_dx, rtol=0.02, atol=0.02)


def test_dropout_in_a_sequence_of_16_bits_drops_what_its_gradient_drops():
    model = SparseSequential(layer_of(20, 30, "bfloat16", relu=True), FastDropout(0.5), layer_of(30, 30, "bfloat16"))
    alone = copy.deepcopy(model)
    x = torch.randn(40, 20)
    torch.manual_seed(3)
    y, dx = gradients(model, x, torch.ones(40, 30))
    torch.manual_seed(3)
    hidden = x.requires_grad_()
    for layer in alone:
        hidden = layer(hidden.t().contiguous().t())  # the random numbers count in memory order
    hidden.sum().backward()
    torch.testing.assert_close(y, hidden.detach(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(dx, x.grad, rtol=0.02, atol=0.02)


@both_types
def test_the_config_is_kept_by_files_and_copies(activations, tmp_path):
    def network():
        return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))

    config = fg.Sparse(fg.ErdosRenyi(density=0.5), activations=activations)
    assert fg.Sparse.from_dict(config.to_dict()) == config
    model = network()
    report = str(fg.convert_(model, config))
    assert f"%, {activations})" in report
    assert activations in repr(model[0])
    fg.save(model, tmp_path / "model.safetensors")
    x = torch.randn(7, 12)
    for again in (fg.load(tmp_path / "model.safetensors", into=network()), copy.deepcopy(model)):
        assert [m.activations for m in again.modules() if isinstance(m, SparseLinear)] == [activations] * 2
        assert torch.equal(again(x), model(x))


def test_gradients_of_gradients_and_compiled_graphs():
    layer, x = layer_of(13, 9, "bfloat16"), torch.randn(20, 13, requires_grad=True)
    y = layer(x)
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), y)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), layer.values)
    assert second.isfinite().all()
    assert second.abs().sum() > 0


def test_values_of_other_types_are_computed_without_rounding():
    layer = layer_of(13, 9, "bfloat16").double()
    x = torch.randn(20, 13).double()
    torch.testing.assert_close(layer(x), F.linear(x, layer.dense().weight, layer.bias))
    short = layer.half()
    assert short(x.half()).dtype is torch.float16


def test_refusals():
    with pytest.raises(ValueError, match=r"activations must be None, bfloat16 or float16\. Got 'int8'"):
        SparseLinear(4, 4, activations="int8")
    with pytest.raises(ValueError, match="activations"):
        fg.Sparse(fg.ErdosRenyi(density=0.5), activations="float8")
    with pytest.raises(ValueError, match="not for masked=True"):
        fg.Sparse(fg.ErdosRenyi(density=0.5), masked=True, activations="bfloat16")
    layer = layer_of(4, 4, "bfloat16")
    for dtype in (torch.float64, torch.float16):
        with pytest.raises(TypeError, match=rf"must be torch\.float32.*Got {dtype}"):
            layer(torch.randn(2, 4).to(dtype))


def test_a_file_for_other_runtimes_computes_in_float32(tmp_path):
    model = nn.Sequential(layer_of(12, 16, "bfloat16", relu=True), layer_of(16, 4, "bfloat16"))
    fg.export(model, tmp_path / "model.onnx", torch.randn(7, 12), seconds=0.01)
    assert model[0].activations == "bfloat16"
