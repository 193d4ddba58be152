"""A sequence keeps its plan while its modules are as they were, and makes another one after any change of them."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import filigree as fg
from filigree.nn import FastDropout
from filigree.ops.chain import Chain, Link, chain_forward


def network(dropout=0.0):
    """Two chains' worth of layers: sparse ones, and a narrow dense one at the end."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 33), nn.ReLU(), FastDropout(dropout), nn.Linear(33, 17), nn.Identity(), nn.Linear(17, 5)
    )
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["0", "3"])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=1.0)), where=["5"])
    return model


def results(model, x):
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


def check(model, x=None):
    x = torch.randn(6, 20) if x is None else x
    for one, other in zip(results(model, x), results(nn.Sequential(*model), x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_plan_is_kept():
    model = network(0.4)
    check(model)
    plan = model._plan
    model(torch.randn(3, 20))
    model[0].values.grad = None
    with torch.no_grad():
        model[0].values.mul_(2)
    check(model)
    assert model._plan is plan


def rewire(model):
    layer = model[0]
    layer.rewire_(layer.flat_indices()[::2].contiguous(), layer.weights()[::2].contiguous())


def write_indices(model):
    layer = model[3]
    layer.indices.copy_(layer.indices.clone())


def parametrise(model):
    class Twice(nn.Module):
        def forward(self, bias):
            return 2 * bias + 1

    parametrize.register_parametrization(model[3], "bias", Twice())


def override_forward(model):
    forward = model[0].forward
    model[0].forward = lambda x: 2 * forward(x)


def halve_in_place(model):
    model[0].bias.data = model[0].bias.data / 2 + 1


CHANGES = {
    "rewired": rewire,
    "index written": write_indices,
    "other values": lambda model: setattr(model[0], "values", nn.Parameter(torch.randn_like(model[0].values))),
    "other bias": lambda model: setattr(model[5], "bias", nn.Parameter(torch.randn(5))),
    "no bias": lambda model: setattr(model[3], "bias", None),
    "ReLU": lambda model: setattr(model[3], "relu", True),
    "eval": lambda model: model.eval(),
    "p": lambda model: setattr(model[2], "p", 0.7),
    "replaced": lambda model: model.__setitem__(4, nn.Tanh()),
    "appended": lambda model: model.append(nn.Sigmoid()),
    "removed": lambda model: model.pop(5),
    "parametrised": parametrise,
    "forward overridden": override_forward,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change):
    model = network(0.4)
    check(model)
    plan = model._plan
    CHANGES[change](model)
    check(model)
    assert model._plan is not plan


MOVES = {
    "shared": lambda model: model.share_memory(),
    "each tensor shared": lambda model: [t.share_memory_() for t in (*model.parameters(), *model.buffers())],
    "data": halve_in_place,
    "loaded": lambda model: model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True),
}


@pytest.mark.parametrize("move", MOVES)
def test_tensors_may_move(move):
    model = network()
    check(model)
    held = [t.data_ptr() for t in (*model.parameters(), *model.buffers())]
    MOVES[move](model)
    for pointer in (t.data_ptr() for t in (*model.parameters(), *model.buffers())):
        if pointer not in held:
            break
    else:
        pytest.fail("nothing has moved")
    check(model)


def test_values_that_no_longer_fit_are_said_by_the_layer():
    model, x = network(), torch.randn(6, 20)
    model(x)
    values = model[0].values
    values.data = values.data[::2]  # at the same address
    with pytest.raises(ValueError, match=f"values must be \\({model[0].nnz},\\)"):
        model(x)
    model = network()
    y = model(x)
    model[3].bias.data = torch.zeros(2)
    with pytest.raises(RuntimeError, match="between forward and backward"):
        y.sum().backward()
    check(network().double(), x.double())


def test_a_hook_is_called_and_its_removal_seen():
    model, x, seen = network(), torch.randn(6, 20), []
    model(x)
    handle = model[3].register_forward_hook(lambda module, args, y: seen.append(module))
    check(model, x)
    assert seen == [model[3]] * 2
    handle.remove()
    check(model, x)
    plan = model._plan
    model(x)
    assert (len(seen), model._plan) == (2, plan)


def test_a_module_that_changes_those_after_it():
    class Changes(nn.Module):
        def forward(self, x):
            model[3].relu = not model[3].relu
            return x

    model, x = network(), torch.randn(6, 20)
    without = model(x)
    model[2] = Changes()
    torch.testing.assert_close(model(x), nn.Sequential(*model[:2], *model[3:])(x))
    assert model[3].relu
    torch.testing.assert_close(model(x), without)


def test_copies_and_files_have_no_plan():
    model, x = network(), torch.randn(6, 20)
    y = model(x)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)):
        assert duplicate._plan is None
        torch.testing.assert_close(duplicate(x), y)
    with torch.no_grad():
        model[0].values.zero_()
    assert not torch.allclose(copy.deepcopy(model)(x), y)


def test_other_tensors_in_place_of_parameters_are_not_kept():
    model, x = network(), torch.randn(6, 20)
    others = {name: p.detach() * 2 for name, p in model.named_parameters()}
    y = torch.func.functional_call(model, others, x)
    held = weakref.ref(others["0.values"])
    for name, parameter in model.named_parameters():
        parameter.data = others[name].clone()
    torch.testing.assert_close(model(x), y)
    del others, y
    gc.collect()
    assert held() is None


def test_hooks_of_saved_tensors():
    model, x = network(), torch.randn(6, 20)
    expected = results(model, x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        packed = results(model, x)
    for one, other in zip(packed, expected, strict=True):
        assert torch.equal(one, other)


def test_a_chain_with_copies_of_its_parameters():
    """What is not contiguous is copied at each call, never kept."""
    model = network()
    layer, x = model[0], torch.randn(6, 20)
    values = torch.stack([layer.values.detach()] * 2, dim=1)[:, 0]
    chain = Chain([Link(layer.pattern, values, layer.bias.detach())])
    assert not chain.fits(torch.float32)
    for factor in (1, 3):
        values.mul_(factor)
        expected = chain_forward([Link(layer.pattern, values.clone(), layer.bias.detach())], x)[0]
        assert torch.equal(chain_forward(chain, x)[0], expected)


def curved(*tail, between=nn.GELU, dropout=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 33), between(), FastDropout(dropout), nn.Linear(33, 17), *tail)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)))
    return model


@pytest.mark.parametrize("between", [nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Tanh, nn.Sigmoid])
def test_smooth_activations_between_layers_are_one_call(between):
    model = curved(between=between, dropout=0.4)
    for x in (torch.randn(6, 20), torch.randn(130, 20), torch.randn(2, 3, 20), torch.randn(0, 20)):
        check(model, x)
    assert len(model._plan._calls) == 1
    check(model.eval(), torch.randn(2, 3, 20))
    x = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model.double(), x)
    assert torch.autograd.gradgradcheck(model, x)
    assert len(model._plan._calls) == 1


TAILS = [
    [nn.GELU()], [nn.GELU(), nn.Identity(), nn.Tanh()], [nn.ReLU(), nn.GELU()], [nn.GELU(), nn.ReLU()],
    [nn.GELU(), FastDropout(0.4)], [nn.GELU(), FastDropout(0.4), nn.Tanh()],
]  # fmt: skip


@pytest.mark.parametrize("tail", TAILS, ids=str)
def test_an_activation_after_the_last_layer_is_called_by_itself(tail):
    model = curved(*tail)
    check(model)
    assert len(model._plan._calls) == 1 + len(tail) - isinstance(tail[0], nn.ReLU)
    model = nn.Sequential(nn.Linear(20, 33), *tail)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)))
    check(model)


def test_another_approximation_is_seen():
    model, x = curved(), 3 * torch.randn(6, 20)
    check(model, x)
    plan = model._plan
    model[1].approximate = "tanh"
    check(model, x)
    assert model._plan is not plan
    model[1].approximate = "none of these"
    with pytest.raises(RuntimeError, match="approximate"):
        model(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("between", [nn.GELU, nn.SiLU, nn.Sigmoid])
def test_smooth_activations_in_16_bits(isa, between, dtype):
    model = curved(between(), nn.Linear(17, 5), between=between, dropout=0.4)
    with torch.autocast("cpu", dtype):
        for x in (torch.randn(3, 20), torch.randn(70, 20), torch.randn(200, 20)):
            for one, other in zip(results(model, x), results(nn.Sequential(*model), x), strict=True):
                torch.testing.assert_close(one, other, rtol=0.03, atol=0.03 * other.abs().max().item())
    assert len(model._plan._calls) == 1
