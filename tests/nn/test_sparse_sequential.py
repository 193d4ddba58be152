"""A sequence runs its sparse layers in one call, and computes what it would compute layer by layer."""

import copy

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.nn import FastDropout, SparseSequential
from filigree.ops import linear_chain


def dense(dropout=0.0):
    parts = [
        nn.Linear(20, 33), nn.ReLU(), nn.Dropout(dropout), nn.Linear(33, 17), nn.Linear(17, 40, bias=False), nn.ReLU(),
        nn.Linear(40, 5),
    ]  # fmt: skip
    return nn.Sequential(*parts)


def network(dropout=0.0, dtype=torch.float32):
    """Sparse layers with ReLU and without; a narrow dense layer at the end."""
    torch.manual_seed(0)
    model = dense(dropout)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["0", "3", "4"])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=1.0)), where=["6"])
    if dropout:
        fg.convert_(model, fg.Dropout())
    with torch.no_grad():  # no sum stands at the kink of a ReLU
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model.to(dtype)


def results(model, x):
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    y = model(x)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), wanted)]


@pytest.fixture
def calls(monkeypatch):
    """How many links each call of the kernels had."""
    counts = []
    forward = linear_chain.chain_forward
    monkeypatch.setattr(
        "filigree.ops.linear_chain.chain_forward",
        lambda links, *args, **kwargs: counts.append(len(links)) or forward(links, *args, **kwargs),
    )
    return counts


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(7, 20), (1, 20), (0, 20), (130, 20), (3, 4, 20)])
def test_equals_its_layers_one_by_one(shape, dropout, calls):
    model, x = network(dropout), torch.randn(shape)
    assert type(model) is SparseSequential
    chained = results(model, x)
    assert calls == ([4] if not dropout or len(shape) == 2 else [])  # masks of other shapes lie in another order
    for one, other in zip(chained, results(nn.Sequential(*model), x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_nothing_is_dropped_in_eval_mode(calls):
    model, x = network(0.4).eval(), torch.randn(9, 20)
    torch.testing.assert_close(model(x), nn.Sequential(*model)(x))
    assert calls == [4]


def test_hooks_are_called_and_end_a_chain(calls):
    model, x, seen = network(), torch.randn(7, 20), []
    expected = results(model, x)
    handle = model[3].register_forward_hook(lambda module, args, y: seen.append(y.shape))
    hooked = results(model, x)
    handle.remove()
    assert seen == [(7, 17)]
    assert calls == [4, 1, 2]  # the hooked layer stands alone
    with_global = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, y: with_global.append(module))
    everywhere = results(model, x)
    handle.remove()
    assert set(map(id, with_global)) == {id(module) for module in model.modules()}
    for one, *others in zip(expected, hooked, everywhere, strict=True):
        for other in others:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_other_modules_end_a_chain(calls):
    model, x = network(), torch.randn(7, 20)
    model[5] = nn.Tanh()
    for one, other in zip(results(model, x), results(nn.Sequential(*model), x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert calls == [3]


def test_gradients_in_float64():
    model, x = network(dtype=torch.float64), torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    names, values = zip(*model.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), x)

    values = [value.detach().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *values), fast_mode=True)


def test_frozen_layers_get_no_gradient():
    model, x = network(), torch.randn(7, 20)
    model[0].requires_grad_(False)
    model(x).sum().backward()
    assert all(p.grad is None for p in model[0].parameters())
    assert all(p.grad is not None for p in model[3].parameters())


def test_transforms_and_compiled_graphs_see_the_layers():
    model, x = network(), torch.randn(6, 20)
    torch.testing.assert_close(torch.func.vmap(model)(x), model(x))
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype is torch.bfloat16


def test_it_follows_rewiring_copies_and_files(tmp_path):
    model, x = network(), torch.randn(7, 20)
    model(x)
    layer = model[0]
    layer.rewire_(layer.flat_indices()[::2].contiguous(), layer.weights()[::2].contiguous())
    expected = nn.Sequential(*model)(x)
    torch.testing.assert_close(model(x), expected)
    duplicate = copy.deepcopy(model)
    torch.testing.assert_close(duplicate(x), expected)
    assert list(duplicate.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(model[:4](x), nn.Sequential(*model[:4])(x))
    fg.save(model, tmp_path / "model.safetensors")
    loaded = fg.load(tmp_path / "model.safetensors", into=dense())
    assert type(loaded) is SparseSequential
    torch.testing.assert_close(loaded(x), expected)


def test_layers_with_indices_of_different_types_are_run_apart(calls):
    """A state dict may hold int64 indices for some layers only, and narrow dense layers have int32."""
    model, x = network(), torch.randn(7, 20)
    expected = results(model, x)
    state = model.state_dict()
    model.load_state_dict({k: t.long() if k in ("3.indptr", "3.indices") else t for k, t in state.items()})
    calls.clear()
    for one, other in zip(results(model, x), expected, strict=True):
        torch.testing.assert_close(one, other)
    assert 4 not in calls


def test_a_wrong_width_is_said_by_the_layer():
    with pytest.raises(ValueError, match=r"SparseLinear: the input's last side must be in_features=20. Got \(7, 19\)"):
        network()(torch.randn(7, 19))


def test_dropout_is_fused_only_where_it_can_be(calls):
    model = network(0.4)
    model[2] = FastDropout(1.0)
    results(model, x := torch.randn(5, 20))
    model[2] = nn.Dropout(0.4)  # draws its numbers otherwise
    results(model, x)
    assert calls == [1, 3, 1, 3]
