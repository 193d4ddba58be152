"""Gates of another kind in recurrent networks whose products are of another kind too."""

import copy

import pytest
import torch
from torch import nn

import filigree as fg

PRODUCTS = [fg.ACDC(2), fg.Asymmetric.topk(2), fg.Sparse(fg.ErdosRenyi(density=0.5))]
GATES = [fg.Noisy("NAH", c=5.0), fg.Mollified()]


def name_of(config):
    return type(config).__name__


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("products", PRODUCTS, ids=name_of)
@pytest.mark.parametrize("gates", GATES, ids=name_of)
def test_gates_with_other_products(gates, products, kind, tmp_path):
    def made():
        torch.manual_seed(0)
        return nn.Sequential(kind(8, 8))

    model = made()
    fg.convert_(model, products, where="0")
    fg.convert_(model, gates)
    for module in model[0].gates.values():
        if isinstance(module, fg.nn.MollifiedGates):
            module.p = 0.5
    x = 3 * torch.randn(4, 2, 8)
    model(x)[0].square().sum().backward()
    assert all(q.grad is not None and bool(q.grad.isfinite().all()) for q in model.parameters())
    assert not torch.equal(model(x)[0], model(x)[0])  # noise
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors", into=made())
    assert torch.equal(again.eval()(x)[0], model.eval()(x)[0])


@pytest.mark.parametrize("config", [*GATES, fg.Sparse(fg.ErdosRenyi(density=0.5)), fg.ACDC(2)], ids=name_of)
def test_what_is_refused_leaves_the_model_as_it_was(config):
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.LSTM(8, 8, proj_size=4))
    before = copy.deepcopy(str(model))
    with pytest.raises(ValueError, match="proj_size"):
        fg.convert_(model, config, where=None if not isinstance(config, fg.ACDC) else "2")
    assert str(model) == before


def test_what_callers_of_torch_s_networks_call():
    for kind in (nn.LSTM, nn.GRU):
        model = nn.Sequential(kind(8, 16))
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)))
        model[0].flatten_parameters()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_sparsified_products_are_exact_in_eval_mode_with_gates_too(kind):
    exact = nn.Sequential(kind(3, 4))
    sparsified = copy.deepcopy(exact)
    fg.convert_(sparsified, fg.Asymmetric.topk(1))
    x, gradients = torch.randn(5, 2, 3), []
    for model in (exact, sparsified):
        fg.convert_(model, fg.Mollified())
        model.eval()(x)[0].sum().backward()
        gradients.append(model[0].weight_ih_l0.grad)
    assert torch.equal(*gradients)
    exact_gradient = gradients[1].clone()
    sparsified.zero_grad()
    for gates in sparsified[0].gates.values():
        gates.p = 0.0
    sparsified.train()(x)[0].sum().backward()
    assert int((sparsified[0].weight_ih_l0.grad == 0).sum()) > 0 == int((exact_gradient == 0).sum())
