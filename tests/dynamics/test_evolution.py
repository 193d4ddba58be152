import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import filigree as fg
from filigree.nn import SparseLinear

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.001, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5),
}


def network(density=0.3, masked=False, sizes=(12, 20, 15, 3), seed=0):
    model = fg.models.mlp(list(sizes))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=density), masked=masked, seed=seed))
    return model


def train(model, optimizer, steps=3, inputs=12):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, inputs)).square().sum().backward()
        optimizer.step()


def test_rewiring_keeps_the_invariants():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    evolution = fg.Evolution(model, optimizer, fg.Constant(0.3))
    train(model, optimizer)
    for _ in range(5):
        before = {name: (it.flat_indices(), it.weights().clone()) for name, it in evolution.layers.items()}
        evolution.step()
        for name, layer in evolution.layers.items():
            old_places, old = before[name]
            flat_indices, new = layer.flat_indices(), layer.weights()
            assert flat_indices.numel() == old_places.numel()  # nnz
            assert bool((flat_indices.diff() > 0).all())  # sorted, no duplicates
            stayed = torch.isin(flat_indices, old_places[torch.isin(old_places, flat_indices)])
            lookup = dict(zip(old_places.tolist(), old.tolist(), strict=True))
            for place, weight in zip(flat_indices[stayed].tolist(), new[stayed].tolist(), strict=True):
                assert weight in (lookup[place], 0.0)  # zero: removed and grown again at once
            x = torch.randn(4, layer.in_features)
            torch.testing.assert_close(layer(x), layer.dense()(x))  # the index and its transpose agree with the values
        train(model, optimizer)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_follows(name, masked):
    model = network(masked=masked)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    evolution = fg.Evolution(model, optimizer, 0.4)
    layer = model.fc2
    states = {
        k: t
        for k, t in optimizer.state[layer.connections].items()
        if getattr(t, "shape", None) == layer.connections.shape
    }
    assert states

    def by_place(tensor):
        flat = tensor[layer.mask] if masked else tensor
        return dict(zip(layer.flat_indices().tolist(), flat.tolist(), strict=True))

    before = {key: by_place(t) for key, t in states.items()}
    old_weights, births = by_place(layer.connections.detach()), evolution.births["fc2"]
    evolution.step()
    new = dict(zip(layer.flat_indices().tolist(), (evolution.births["fc2"] == 1).tolist(), strict=True))
    assert any(new.values())
    assert births.numel() == len(new)
    for key, tensor in states.items():
        for place, value in by_place(tensor).items():
            assert value == (0.0 if new[place] else before[key][place])
        if masked:
            assert not bool(tensor[~layer.mask].any())  # momentum of removed weights is cleared
    for place, weight in by_place(layer.connections.detach()).items():
        assert weight == (0.0 if new[place] else old_weights[place])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_any_layer_size_density_and_rate(n_in, n_out, density, zeta, seed):
    count = round(density * n_in * n_out)
    flat_indices = torch.randperm(n_in * n_out, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    model = nn.Sequential(SparseLinear(n_in, n_out, flat_indices=flat_indices, seed=seed))
    evolution = fg.Evolution(model, None, zeta, seed=seed)
    for _ in range(3):
        evolution.step()
    assert model[0].nnz == count
    assert bool((model[0].flat_indices().diff() > 0).all())
    x = torch.randn(3, n_in)
    torch.testing.assert_close(model[0](x), model[0].dense()(x))


def test_dead_inputs_do_not_collect_connections():
    """Inputs that are always zero leave their new connections at exactly zero: these must move on."""
    model = nn.Sequential(SparseLinear(40, 30, fg.ErdosRenyi(density=0.2)), nn.ReLU(), nn.Linear(30, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    evolution = fg.Evolution(model, optimizer, 0.3)
    x = torch.randn(64, 40)
    x[:, ::2] = 0
    target = x[:, 1::2].sum(1, keepdim=True).sign() * torch.tensor([1.0, -1.0])
    for _ in range(30):
        for _ in range(5):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
        dead = float((model[0].weights() == 0).float().mean())
        evolution.step()
    assert dead < 0.3  # 0.15 / 0.65 at equilibrium: half of what is regrown lands there; without the rule 0.8


def test_none_after_the_last_epoch():
    model = network()
    evolution = fg.Evolution(model, None, 0.3, epochs=3)
    rates = []
    for _ in range(3):
        evolution.step()
        rates.append(evolution.rate)
    assert rates == [0.3, 0.3, 0.0]
    early = fg.Evolution(network(), None, 0.3, epochs=5, stop_before_end=3)
    rates = [(early.step(), early.rate)[1] for _ in range(5)]
    assert rates == [0.3, 0.3, 0.0, 0.0, 0.0]


def test_every_n_steps():
    model = network()
    evolution = fg.Evolution(model, None, fg.ExponentialDecay(0.4, 0.5), every=3)
    before = model.fc1.flat_indices()
    evolution.step(), evolution.step()
    assert torch.equal(model.fc1.flat_indices(), before)
    evolution.step()
    assert not torch.equal(model.fc1.flat_indices(), before)
    assert (evolution.epoch, evolution.rate) == (1, 0.4)


@pytest.mark.parametrize("regrow", ["zero", "initial", 0.1])
def test_regrowth_scale(regrow):
    model = nn.Sequential(SparseLinear(300, 200, fg.ErdosRenyi(density=0.1)))
    evolution = fg.Evolution(model, None, 0.5, regrow=regrow)
    evolution.step()
    new = model[0].weights()[evolution.births["0"] == 1]
    expected = {"zero": 0.0, "initial": (2 / 30) ** 0.5, 0.1: 0.1}[regrow]
    assert new.std().item() == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("masked", [False, True])
def test_growth_by_gradient_takes_the_largest(masked):
    model = network(masked=masked)
    evolution = fg.Evolution(model, None, 0.3, grow="gradient")
    dense = copy.deepcopy(model)
    for name, layer in evolution.layers.items():
        dense.set_submodule(name, layer.dense())
    x = torch.randn(8, 12)
    model(x).square().sum().backward()
    dense(x).square().sum().backward()
    before = {name: (it.flat_indices(), it.weights().clone()) for name, it in evolution.layers.items()}
    evolution.step()
    for name, layer in evolution.layers.items():
        dense_reference = dense.get_submodule(name)
        gradient = (
            (dense_reference[0] if isinstance(dense_reference, nn.Sequential) else dense_reference)
            .weight.grad.abs()
            .flatten()
        )
        new = layer.flat_indices()[evolution.births[name] == 1]
        kept = layer.flat_indices()[evolution.births[name] == 0]
        candidates = torch.ones_like(gradient, dtype=torch.bool)
        candidates[kept] = False
        candidates[new] = False
        assert gradient[new].min() >= gradient[candidates].max() - 1e-5
        assert before[name][0].numel() == layer.flat_indices().numel()


def test_growth_by_gradient_watches_no_longer_than_it_grows():
    """Hooks keep layers out of chains, and export to C refuses them."""
    model = network()
    evolution = fg.Evolution(model, None, 0.3, epochs=3, grow="gradient")
    layer = next(iter(evolution.layers.values()))
    for hooks in (1, 1, 0):
        model(torch.randn(4, layer.in_features)).square().sum().backward()
        evolution.step()
        assert len(layer._forward_hooks) == hooks
    again = fg.Evolution(network(), None, 0.3, epochs=3, grow="gradient")
    again.load_state_dict(evolution.state_dict())
    assert not any(module._forward_hooks for module in again.layers.values())
    evolution._given = None
    evolution.set_horizon(5)  # training goes on
    assert layer._forward_hooks
    trained = network()
    x = torch.randn(8, layer.in_features)
    grown = fg.RigL(trained, optimizer := torch.optim.SGD(trained.parameters(), 0.1), delta_t=2)
    fg.fit(
        trained, (x, torch.zeros(8, dtype=torch.long)), optimizer=optimizer, epochs=4, batch_size=4, callbacks=[grown]
    )
    assert grown.epoch
    assert not any(module._forward_hooks for module in trained.modules())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv2d(8, 8, 1)], ids=["linear", "convolution"])
def test_growth_by_gradient_under_autocast(layer, masked):
    """The gradients of outputs in bfloat16 have that type, inputs of the first layer have not."""
    model = nn.Sequential(copy.deepcopy(layer))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5), masked=masked), where="0")
    evolution = fg.Evolution(model, None, 0.3, grow="gradient")
    with torch.autocast("cpu", torch.bfloat16):
        y = model(torch.randn(4, 8, *[1] * (layer.weight.dim() - 2)))
    y.float().square().sum().backward()
    before = model[0].flat_indices()
    evolution.step()
    assert len(model[0].flat_indices()) == len(before)
    assert not torch.equal(model[0].flat_indices(), before)


def test_growth_by_gradient_needs_a_backward_pass():
    with pytest.raises(ValueError, match="needs a backward pass"):
        fg.Evolution(network(), None, 0.3, grow="gradient").step()


def test_the_same_seed_gives_the_same_run_and_resuming_continues_it():
    def run(resume_at=None):
        torch.manual_seed(5)
        model = network()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        evolution = fg.Evolution(model, optimizer, fg.LinearDecrease(), epochs=6, regrow="initial", seed=4)
        for epoch in range(6):
            if epoch == resume_at:
                saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), evolution.state_dict()))
                with torch.random.fork_rng():
                    model = network(density=0.3, seed=77)
                model.load_state_dict(saved[0])
                optimizer = OPTIMIZERS["sgd"](model.parameters())
                optimizer.load_state_dict(saved[1])
                evolution = fg.Evolution(model, optimizer, fg.LinearDecrease(), epochs=6, regrow="initial", seed=99)
                evolution.load_state_dict(saved[2])
            train(model, optimizer)
            evolution.step()
        return model.state_dict(), evolution

    (one, a), (two, b), (three, c) = run(), run(), run(resume_at=3)
    for key, value in one.items():
        assert torch.equal(value, two[key])
        assert torch.equal(value, three[key])
    assert torch.equal(a.deaths["fc1"], c.deaths["fc1"])
    assert torch.equal(a.births["fc2"], b.births["fc2"])


def test_adaptive_follows_the_metric():
    evolution = fg.Evolution(network(), None, fg.Adaptive("loss", zeta_max=0.4, zeta_min=0.0, smoothing=0.0))
    rates = []
    for loss in (2.0, 1.0, 3.0, 0.2):
        evolution.step({"loss": loss})
        rates.append(round(evolution.rate, 6))
    assert rates == [0.4, 0.2, 0.4, 0.04]
    with pytest.raises(ValueError, match=r"must hold 'loss'\. Got accuracy"):
        evolution.step({"accuracy": 0.5})


def test_lifetimes_are_remembered():
    evolution = fg.Evolution(network(), None, 0.3)
    [evolution.step() for _ in range(4)]
    for name, layer in evolution.layers.items():
        deaths = evolution.deaths[name]
        assert bool((deaths[:, 0] < deaths[:, 1]).all())
        assert int(deaths[:, 2].sum()) > 0
        assert evolution.births[name].numel() == layer.nnz


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, o: fg.Evolution(fg.models.mlp([3, 4]), o, 0.3), "has no sparse layers"),
        (lambda m, o: fg.Evolution(m, torch.optim.SGD(nn.Linear(3, 4).parameters(), 1), 0.3), "made before convert_"),
        (lambda m, o: fg.Evolution(m, o, fg.LinearDecrease()).step(), "LinearDecrease needs the horizon. Give epochs="),
        (lambda m, o: fg.Evolution(m, o, fg.Oscillation() * 0.5).step(), "Product needs the horizon"),
        (lambda m, o: fg.Evolution(m, o, 1.5), "zeta must be less than or equal to 1"),
        (lambda m, o: fg.Evolution(m, o, lambda epoch: 2.0).step(), r"zeta must be in \[0, 1\]. Function gave 2.0"),
        (lambda m, o: fg.Evolution(m, o, 0.3, grow="best"), "'random', 'gradient', 'cht3', 'cht2'. Got 'best'"),
        (lambda m, o: fg.Evolution(m, o, 0.3, regrow="he"), "regrow must be"),
        (lambda m, o: fg.Evolution(m, o, 0.3, every=0), "every must be at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        call(model, torch.optim.SGD(model.parameters(), 0.1))


def test_gradients_follow_a_rewiring():
    torch.manual_seed(0)
    model = network()
    evolution = fg.Evolution(model, torch.optim.SGD(model.parameters(), 0.1), 0.5)
    nn.functional.cross_entropy(model(torch.randn(8, 12)), torch.randint(3, (8,))).backward()
    layer = next(iter(evolution.layers.values()))
    before = dict(zip(layer.flat_indices().tolist(), layer.values.grad.tolist(), strict=True))
    evolution.step()
    after = dict(zip(layer.flat_indices().tolist(), layer.values.grad.tolist(), strict=True))
    assert set(before) != set(after)
    assert all(grad in (before.get(place, 0.0), 0.0) for place, grad in after.items())
    assert sum(grad != 0 for grad in after.values()) > 10


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_growth_by_gradient_sees_all_time_steps(kind):
    """By the gradient of the dense weight: twice the forward and backward pass, to see that the last one counts."""
    torch.manual_seed(0)
    model = nn.Sequential(kind(4, 5, batch_first=True))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)))
    evolution = fg.Evolution(model, None, 0.3, grow="gradient")
    name = next(name for name in evolution.layers if "hh" in name)
    layer, calls = evolution.layers[name], []

    def look(_: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
        y.retain_grad()
        calls.append((args[0], y))

    layer.register_forward_hook(look)
    for _ in range(2):
        calls.clear()
        model(torch.randn(6, 7, 4))[0].square().sum().backward()
    expected = sum(y.grad.t() @ x for x, y in calls)
    x, dy = (torch.cat(parts) for parts in zip(*evolution._watch[name].last(), strict=True))
    torch.testing.assert_close(dy.t() @ x, expected)
    assert len(calls) == 7
    assert expected.abs().max() > 0
    evolution.step()


@pytest.mark.parametrize("reentrant", [True, False])
def test_growth_by_gradient_sees_all_calls_that_are_computed_again(reentrant):
    """A layer that several checkpointed parts share; and of the last batch only."""

    def grown(again):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 12))
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)))
        evolution, part = fg.Evolution(model, None, 0.5, grow="gradient"), nn.Sequential(*model, nn.Tanh())
        for _ in range(2):
            y = torch.randn(8, 12, requires_grad=True)
            for _ in range(3):
                y = checkpoint(part, y, use_reentrant=reentrant) if again else part(y)
            y.square().sum().backward()
        evolution.step()
        return model[0].flat_indices()

    assert torch.equal(grown(True), grown(False))


@pytest.mark.parametrize("reason", ["zeta", "gradient", "topology"])
def test_a_step_that_is_refused_moves_nothing(reason):
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 20))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)))
    options = {"grow": "gradient"} if reason == "gradient" else {}
    schedule = (lambda epoch: 1.5) if reason == "zeta" else fg.Constant(0.3)
    evolution = fg.Evolution(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), schedule, **options)
    if reason == "gradient":  # the second layer has seen no backward pass
        model[0](torch.randn(4, 20)).sum().backward()
    if reason == "topology":  # loaded when the evolution was there
        other = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 20))
        fg.convert_(other, fg.Sparse(fg.ErdosRenyi(density=0.2)))
        model.load_state_dict(other.state_dict())
    before = copy.deepcopy((model.state_dict(), evolution.state_dict()))
    messages = {
        "zeta": "zeta must be in", "gradient": "needs a backward pass",
        "topology": "layer '0' has 120 connections, and the evolution knows 180: another topology was loaded",
    }  # fmt: skip
    with pytest.raises(ValueError, match=messages[reason]):
        evolution.step()
    after = model.state_dict(), evolution.state_dict()
    torch.testing.assert_close(after, before, rtol=0, atol=0)
