"""The names of the literature stand for the evolutions that they should, and say so when the horizon is missing."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import filigree as fg


def network():
    torch.manual_seed(0)
    model = fg.models.mlp([12, 30, 30, 3], activation="tanh")
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["fc1", "fc2"])
    return model


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 12, generator=generator)
    return x, (x[:, 0] > 0).long()


def loop(make, epochs=4, steps=3):
    """A hand-written loop, which steps as the evolution's `interval` says."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    evolution, (x, y), rates = make(model, optimizer), data(), []
    for _ in range(epochs):
        for _ in range(steps):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if evolution.interval == "step":
                evolution.step()
        if evolution.interval == "epoch":
            evolution.step()
        rates.append(evolution.rate)
    return model.state_dict(), rates


@pytest.mark.parametrize(
    ("preset", "options", "schedule"),
    [
        (fg.SET, {}, fg.Constant(0.3)),
        (fg.SET, {"zeta": 0.2, "regrow": "initial", "seed": 3}, fg.Constant(0.2)),
        (fg.LDV, {}, fg.LinearDecrease(0.3, 0.01)),
        (fg.LDV, {"zeta_max": 0.5, "zeta_min": 0.1}, fg.LinearDecrease(0.5, 0.1)),
        (fg.OSV, {}, fg.Oscillation(0.3, 0.01, k=1)),
        (fg.OSV, {"k": 2}, fg.Oscillation(0.3, 0.01, k=2)),
        (fg.EXD, {}, fg.ExponentialDecay(0.3, 0.01)),
        (fg.EXD, {"interest": 0.1, "horizon": 500}, fg.ExponentialDecay(0.3, 0.1, horizon=500)),
    ],
)
def test_a_preset_is_the_evolution_that_it_stands_for(preset, options, schedule):
    more = {name: options[name] for name in ("regrow", "seed") if name in options}
    one, rates = loop(lambda m, o: preset(m, o, epochs=4, **options))
    other, expected = loop(lambda m, o: fg.Evolution(m, o, schedule, 4, **more))
    assert rates == expected
    assert rates[-1] == 0.0 < rates[0]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_rigl_is_the_evolution_that_it_stands_for():
    one, rates = loop(lambda m, o: fg.RigL(m, o, alpha=0.4, delta_t=2, t_end=0.5, steps=12))
    other, expected = loop(
        lambda m, o: fg.Evolution(m, o, fg.CosineDecay(0.4, 0.5), 12, grow="gradient", every=2, interval="step")
    )
    # rewirings 0 to 5 after steps 2 to 12, T_end at 3 of them; looked at after steps 3, 6, 9, 12
    assert rates == expected == pytest.approx([0.4, 0.2 * (1 + math.cos(math.pi * 2 / 3)), 0.0, 0.0])
    assert all(torch.equal(one[name], other[name]) for name in one)
    defaults = fg.RigL(network(), None)
    assert defaults.schedule == fg.CosineDecay(zeta=0.3, end=0.75)
    assert (defaults.every, defaults.grow, defaults.regrow, defaults.interval) == (100, "gradient", "zero", "step")


# -- the horizon ------------------------------------------------------------------------------------------------------


def run(model, callbacks, epochs=3, optimizer=None, **options):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return fg.fit(
        model, data(), optimizer=optimizer, epochs=epochs, batch_size=20, callbacks=callbacks, progress=False, **options
    )


@pytest.mark.parametrize("make", [fg.SET, fg.LDV, fg.OSV, fg.EXD])
def test_fit_fills_in_the_horizon(make):
    given, filled = network(), network()
    histories = []
    for model, epochs in ((given, 5), (filled, None)):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        histories.append(run(model, make(model, optimizer, epochs=epochs), 5, optimizer))
    assert histories[0]["zeta"] == histories[1]["zeta"]
    assert histories[0]["zeta"][-1] == 0.0 < histories[0]["zeta"][0]
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), filled.parameters(), strict=True))


def test_a_contradicting_horizon_is_refused_in_one_line():
    model = network()
    with pytest.raises(ValueError, match=r"Evolution: epochs must be .* run, 3\. Got 5: leave it out") as raised:
        run(model, lambda model, optimizer: fg.SET(model, optimizer, epochs=5))
    assert "\n" not in str(raised.value)
    model = nn.Sequential(nn.Dropout(0.5), network())
    with pytest.raises(ValueError, match=r"DropoutAnnealing: epochs must be .*3\. Got 4"):
        run(model, fg.DropoutAnnealing(model, epochs=4))


def test_a_second_fit_goes_on_where_the_first_ended():
    """4 rewirings in 5 epochs, then 2 in 3 more: the straight line from 0.3 is that of all 4 + 3 calls."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    evolution = fg.LDV(model, optimizer, zeta_min=0.0)
    first = run(model, evolution, 5, optimizer)["zeta"]
    assert first == pytest.approx([0.3, 0.24, 0.18, 0.12, 0])
    assert evolution.epochs == 5
    second = run(model, evolution, 3, optimizer)["zeta"]
    assert evolution.epochs == 7
    assert second == pytest.approx([0.3 * 3 / 7, 0.3 * 2 / 7, 0])


def test_a_resumed_run_makes_up_for_the_rewiring_that_the_end_of_a_shorter_one_left_out(tmp_path):
    for grow in ("random", "gradient"):
        results = []
        for parts in ((5,), (3, 5)):
            for epochs in parts:
                model = network()
                optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
                evolution = fg.SET(model, optimizer, grow=grow)
                run(model, evolution, epochs, optimizer, checkpoint=tmp_path / f"{grow}{len(parts)}", resume=True)
            results.append((model.state_dict(), evolution.births["fc1"]))
        (one, births), (other, again) = results
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert torch.equal(births, again)


def test_annealings_learn_the_horizon_from_fit():
    model = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.4), nn.Tanh(), nn.Linear(8, 3))
    fg.convert_(model, fg.Noisy("NAN"), where="2")
    seen = []
    annealings = [fg.DropoutAnnealing(model), fg.NoiseAnnealing(model, 4, 0.1, schedule=fg.LinearDecrease(1, 0))]

    class Look:
        def on_step_end(self, state):
            seen.append((round(model[1].p, 3), round(annealings[1].scale, 3)))

    run(model, [*annealings, Look()], epochs=2)
    assert seen == [(0.4, round(4 * (1 - i / 6), 3)) for i in (1, 2, 3)] + [
        (0.2, round(4 * (1 - i / 6), 3)) for i in (4, 5, 6)
    ]
    for annealing in (fg.DropoutAnnealing(model), fg.NoiseAnnealing(model, schedule=fg.LinearDecrease(1, 0))):
        with pytest.raises(ValueError, match=r"LinearDecrease needs to know the .*give (epochs|steps)="):
            annealing.step()


def test_rewiring_by_step_needs_data_of_a_known_length():
    x, y = data()

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(x, y, strict=True))

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"Evolution rewires by step, which needs training data of a known length"):
        fg.fit(
            model, torch.utils.data.DataLoader(Stream(), 20), optimizer=optimizer, epochs=2, callbacks=fg.RigL,
            progress=False,
        )  # fmt: skip


# -- loops of one's own -----------------------------------------------------------------------------------------------


def test_what_is_made_of_a_network_right_after_a_rewiring_is_warned_of_once(tmp_path):
    def trained(optimizer_of):
        model = network()
        optimizer = optimizer_of(model.parameters())
        evolution = fg.SET(model, optimizer)
        x, y = data()

        def epoch():
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()

        return model, evolution, epoch

    uses = [
        ("save", lambda model: fg.save(model, tmp_path / "m.safetensors")),
        ("evaluate", lambda model: fg.evaluate(model, data())),
        ("measure", fg.measure),
        ("export", lambda model: fg.export(model, tmp_path / "m.c", data()[0])),
    ]
    fused = [lambda p: torch.optim.SGD(p, 0.1, fused=True), lambda p: torch.optim.AdamW(p, 0.01, fused=True)]
    for (name, use), optimizer_of in zip(uses, fused * 2, strict=True):
        model, evolution, epoch = trained(optimizer_of)
        epoch()
        use(model)  # not rewired: no warning, which would be an error here
        evolution.step()
        epoch()
        use(model)  # trained since
        evolution.step()
        with pytest.warns(UserWarning, match=rf"{name}: .* of layer 'fc1' were never trained.*epochs="):
            use(model)
        use(model)
        evolution.step()
        use(model)  # once a model


def test_with_the_horizon_a_loop_of_ones_own_needs_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = network()
        evolution = fg.SET(model, None, epochs=2)
        evolution.step()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        evolution.step()
        fg.save(model, tmp_path / "m.safetensors")
