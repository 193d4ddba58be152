"""Networks whose density changes while they train: schedules by hand, layers, optimizers, checkpoints."""

import copy

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.config import Config
from filigree.dynamics.density import proportional


def network(density=0.4, masked=False, sizes=(12, 20, 15, 3), topology=None):
    torch.manual_seed(0)
    model = fg.models.mlp(list(sizes))
    fg.convert_(model, fg.Sparse(topology or fg.ErdosRenyi(density=density), masked=masked))
    return model


def train(model, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 12)).square().sum().backward()
        optimizer.step()


def test_schedules_by_hand():
    cubic = fg.CubicDensity(0.1, begin=0.2, end=0.6)
    assert [cubic.density(0.9, share) for share in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([0.9, 0.9, 0.2, 0.1, 0.1])
    assert fg.LinearDensity(0.1).density(0.5, 0.25) == pytest.approx(0.3)
    sigmoid = fg.SigmoidDensity(0.1, end=1.0)
    assert [sigmoid.density(0.5, t) for t in (0, 0.5, 1)] == pytest.approx([0.5, 0.3, 0.1])
    # g(0.25) = 1 / (1 + e^3) = 0.047426, g(1) - g(0) = 0.995055
    assert sigmoid.density(0.5, 0.25) == pytest.approx(0.5 - 0.4 * (0.5 + (0.047426 - 0.5) / 0.995055), abs=1e-5)
    assert fg.CubicDensity(0.8).density(0.2, 1) == 0.8  # growth
    assert Config.from_dict(cubic.to_dict()) == cubic
    with pytest.raises(ValueError, match="begin must be before end"):
        fg.CubicDensity(0.1, begin=0.5, end=0.5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("zeta", [0.0, 0.3])
@pytest.mark.parametrize("final", [0.1, 0.7])
def test_layers_and_optimizer_follow(final, zeta, masked):
    model = network(masked=masked)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    evolution = fg.Evolution(model, optimizer, zeta, epochs=6, density=fg.CubicDensity(final, end=1.0))
    train(model, optimizer)
    layer, counts = model.fc2, [model.fc2.nnz]
    moments = ("exp_avg", "exp_avg_sq")
    for epoch in range(6):

        def kept(tensor):
            values = tensor[layer.mask] if masked else tensor
            return dict(zip(layer.flat_indices().tolist(), values.tolist(), strict=True))

        state = optimizer.state[layer.connections]
        before = [kept(t) for t in (layer.connections.detach(), *(state[name] for name in moments))]
        evolution.step()
        after = [kept(t) for t in (layer.connections.detach(), *(state[name] for name in moments))]
        born = dict(zip(layer.flat_indices().tolist(), (evolution.births["fc2"] == epoch + 1).tolist(), strict=True))
        for old, new in zip(before, after, strict=True):
            assert all(new[place] == (0.0 if born[place] else old[place]) for place in new)
        if not zeta and final < 0.4:  # the largest stay, and nothing else happens
            gone = [abs(w) for place, w in before[0].items() if place not in after[0]]
            assert not any(born.values())
            assert max(gone, default=0) <= min(abs(w) for w in after[0].values())
        counts.append(layer.nnz)
        train(model, optimizer)
        x = torch.randn(4, 20)
        torch.testing.assert_close(layer(x), layer.dense()(x))
    assert counts == sorted(counts, reverse=final < 0.4)
    assert layer.density == pytest.approx(final, abs=0.005)
    assert counts[-1] == counts[-2]  # nothing after the last


@pytest.mark.parametrize("allocate", ["layer", "erk", "global"])
def test_who_gives_connections_up(allocate):
    model = network(topology=fg.ErdosRenyiKernel(density=0.6), sizes=(30, 40, 20, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    evolution = fg.Evolution(model, optimizer, 0.0, epochs=3, density=fg.CubicDensity(0.2, end=1.0), allocate=allocate)
    before = {name: layer.nnz for name, layer in evolution.layers.items()}
    weights = {name: layer.weights().abs() for name, layer in evolution.layers.items()}
    possible = {name: layer.in_features * layer.out_features for name, layer in evolution.layers.items()}
    for _ in range(3):
        evolution.step()
    after = {name: layer.nnz for name, layer in evolution.layers.items()}
    assert sum(after.values()) == pytest.approx(0.2 * sum(possible.values()), abs=2)
    if allocate == "layer":
        shares = [after[name] / before[name] for name in before]
        assert max(shares) - min(shares) < 0.02
    elif allocate == "erk":
        sizes = [fg.topology.Size(layer.out_features, layer.in_features) for layer in evolution.layers.values()]
        expected = fg.ErdosRenyiKernel(density=0.2).densities(sizes)
        assert [layer.density for layer in evolution.layers.values()] == pytest.approx(expected, abs=0.005)
    else:
        largest = torch.cat(list(weights.values())).sort(descending=True).values[sum(after.values()) - 1]
        assert after == {name: int((size >= largest).sum()) for name, size in weights.items()}


def test_a_full_layer_leaves_its_rest_to_others():
    assert proportional(22, {"a": 4, "b": 4}, {"a": 6, "b": 100}) == {"a": 6, "b": 16}


def test_gradients_follow_and_the_next_step_takes_them():
    """A gradient that was accumulated before the rewiring belongs to the connections that stay."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    evolution = fg.Evolution(model, optimizer, 0.0, epochs=2, density=0.2)
    model(torch.randn(8, 12)).square().sum().backward()
    layer = model.fc1
    before = dict(zip(layer.flat_indices().tolist(), layer.values.grad.tolist(), strict=True))
    evolution.step()
    assert layer.values.grad.shape == layer.values.shape
    after = dict(zip(layer.flat_indices().tolist(), layer.values.grad.tolist(), strict=True))
    assert all(before[place] == gradient for place, gradient in after.items())
    model(torch.randn(8, 12)).square().sum().backward()
    optimizer.step()


def test_lbfgs_goes_on_with_another_number_of_connections():
    """It remembers how many numbers there are."""
    model, x = network(), torch.randn(8, 12)
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    evolution = fg.Evolution(model, optimizer, 0.0, epochs=2, density=0.2)
    optimizer.step(closure)
    with pytest.warns(UserWarning, match="the state of LBFGS"):
        evolution.step()
    before = model.fc1.values.clone()
    assert optimizer.step(closure).isfinite()
    assert not torch.equal(model.fc1.values, before)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grow", ["random", "gradient", "cht3", "cht2"])
def test_a_layer_without_connections_grows(grow, masked):
    model = network(1e-4, masked)
    assert not len(model.fc1.weights())
    optimizer = torch.optim.Adam(model.parameters())
    evolution = fg.Evolution(model, optimizer, 0.0, epochs=2, density=0.5, allocate="erk", grow=grow)
    train(model, optimizer)
    evolution.step()
    assert model.fc1.density > 0.4
    train(model, optimizer)


@pytest.mark.parametrize("grow", ["random", "gradient", "cht3", "cht2"])
def test_a_resumed_run_is_the_whole_one(tmp_path, grow):
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(1))
    data = x, (x.sum(1) > 0).long()

    def run(folder, until=None, resume=False):
        fg.seed_everything(0)
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        options = {"soft": (1, 3)} if grow == "cht2" else {}
        evolution = fg.Evolution(model, optimizer, 0.2, epochs=8, density=0.1, grow=grow, **options)

        class Killed:
            @staticmethod
            def on_epoch_start(state):
                if state.epoch == until:
                    raise KeyboardInterrupt

        fg.fit(model, data, optimizer=optimizer, epochs=8, batch_size=16, callbacks=[evolution, Killed()],
               progress=False, checkpoint=folder, resume=resume)  # fmt: skip
        return model, optimizer, evolution

    whole, optimizer, evolution = run(tmp_path / "whole")
    for until in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", until, resume=True)
    again, other, resumed = run(tmp_path / "parts", resume=True)
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict()["state"], optimizer.state_dict()["state"], rtol=0, atol=0)
    torch.testing.assert_close(resumed.births, evolution.births, rtol=0, atol=0)
    assert whole.fc1.density == pytest.approx(0.1, abs=0.005)


def test_files_and_averages_shrink(tmp_path):
    model = network(sizes=(12, 200, 100, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    ema = fg.EMA(model, 0.5)
    evolution = fg.Evolution(model, optimizer, 0.1, epochs=3, density=fg.CubicDensity(0.05, end=1.0))
    train(model, optimizer)
    ema.step()
    fg.save(model, tmp_path / "before.safetensors")
    for _ in range(3):
        evolution.step()
        train(model, optimizer)
        ema.step()
    fg.save(model, tmp_path / "after.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("before", "after")]
    assert sizes[1] < 0.3 * sizes[0]
    assert optimizer.state[model.fc2.values]["exp_avg"].numel() == model.fc2.nnz == ema.module.fc2.nnz
    x = torch.randn(4, 12)
    assert torch.equal(fg.load(tmp_path / "after.safetensors")(x), model.eval()(x))
    assert not torch.equal(ema.module(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": "0.1"}, "density must be a density schedule or a number"),
        ({"density": 0.1, "allocate": "all"}, "allocate must be 'layer', 'global' or 'erk'. Got 'all'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fg.Evolution(network(), None, 0.3, **options)


def test_a_density_needs_the_horizon_and_nothing_moves_without():
    model = network()
    evolution = fg.Evolution(model, None, 0.3, density=0.1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="CubicDensity needs the horizon"):
        evolution.step()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert isinstance(model.fc1, nn.Module)
