"""Noisy activations: the modules, the config, recurrent networks, annealing."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import filigree as fg
from filigree.nn.rnn import LoopedRNN, gru_cell, lstm_cell
from filigree.ops.noise import KINDS, hard, line

BOTH = [fg.nn.NoisyHardTanh, fg.nn.NoisyHardSigmoid]


def delta(x, tanh):
    return hard(x, tanh) - line(x, tanh)


@pytest.mark.parametrize("activation", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_eval_mode_has_no_noise_and_is_the_expectation(activation, kind):
    tanh = activation is fg.nn.NoisyHardTanh
    x = torch.linspace(-8, 8, 33)
    layer = activation(kind, alpha=0.9, c=20.0, sigma=0.5, p=0.9, learn_p=False)
    drawn = layer(x.expand(50_000, -1))
    assert float(drawn.std(0).max()) > 0.001
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    if kind in ("NANI", "NANIL", "NANIS"):
        torch.testing.assert_close(layer(x), hard(x, tanh))  # by default
        layer.exact = True
    error = 6 * drawn.std(0) / math.sqrt(len(drawn)) + 2e-3  # the generator's quantiles are good to 1e-3
    assert bool(((layer(x) - drawn.mean(0)).abs() < error).all())


def test_the_formulas_by_hand():
    """4.15 at one point: x = 3, p = 2, c = 4, alpha = 0.9: h = 1, u = 3, Delta = -2, d = -1."""
    sigma = 4 * (torch.sigmoid(torch.tensor(-4.0)) - 0.5) ** 2
    layer = fg.nn.NoisyHardTanh("NAH", alpha=0.9, c=4.0, p=2.0).eval()
    expected = 0.9 * 1 + 0.1 * 3 - sigma * math.sqrt(2 / math.pi)
    torch.testing.assert_close(layer(torch.tensor([3.0])), expected[None])
    layer = fg.nn.NoisyHardTanh("NAH", alpha=1.1, c=4.0, p=2.0).eval()  # above 1 the noise points outwards
    expected = 1.1 * 1 - 0.1 * 3 + sigma * math.sqrt(2 / math.pi)
    torch.testing.assert_close(layer(torch.tensor([3.0])), expected[None])
    layer = fg.nn.NoisyHardTanh("NAN", alpha=1.0, c=4.0, p=2.0).eval()
    torch.testing.assert_close(layer(torch.tensor([3.0, -0.5])), torch.tensor([1.0, -0.5]))
    steep = fg.nn.NoisyHardSigmoid("NAN", alpha=1.0, c=0.0)
    x = torch.linspace(-4, 4, 17)
    torch.testing.assert_close(steep(x), (x / 4 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("activation", BOTH)
def test_zero_mean_where_the_papers_claim_it(activation):
    """NAN at alpha 1: E phi = h (4.8); only saturated units are noisy; the noise is symmetric in p."""
    tanh = activation is fg.nn.NoisyHardTanh
    x = torch.linspace(-6, 6, 13)
    layer = activation("NAN", alpha=1.0, c=10.0, p=1.0)
    drawn = layer(x.expand(40_000, -1)).detach()
    error = 5 * drawn.std(0) / 200 + 1e-6
    assert bool(((drawn.mean(0) - hard(x, tanh)).abs() < error).all())
    calm = delta(x, tanh) == 0
    assert bool((drawn.std(0)[calm] < 1e-6).all())
    assert bool((drawn.std(0)[~calm] > 1e-4).all())


def test_the_seed_rules_the_noise():
    layer = fg.nn.NoisyHardTanh("NAN", c=5.0)
    x = torch.randn(4, 100) * 3
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)


@pytest.mark.parametrize(
    "noise", ["uniform", "laplace", "half-normal", "exponential", torch.distributions.Gumbel(0, 1)]
)
def test_any_noise_with_a_mean(noise):
    x = torch.linspace(-4, 4, 9)
    layer = fg.nn.NoisyHardTanh("NAH", c=8.0, p=1.0, noise=noise)
    drawn = layer(x.expand(40_000, -1)).detach()
    error = 5 * drawn.std(0) / 200 + 1e-6
    assert bool(((layer.eval()(x) - drawn.mean(0)).abs() < error).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0}, "alpha"), ({"c": -1}, "c and sigma"), ({"kind": "NAX"}, "kind must be"),
        ({"noise": "cauchy"}, "noise must be"), ({"noise": torch.distributions.Cauchy(0, 1)}, "no mean"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fg.nn.NoisyHardTanh(**arguments)


def test_bad_configs_and_shapes():
    for arguments, message in (
        ({"alpha": 0}, "alpha"), ({"c": -0.1}, "c must"), ({"form": "NAX"}, "form"), ({"noise": "x"}, "noise"),
        ({"p": "each"}, "p"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            fg.Noisy(**arguments)
    with pytest.raises(ValueError, match="no module was selected"):
        fg.convert_(fg.models.mlp([3, 4, 2]), fg.Noisy())
    with pytest.raises(ValueError, match="no layer stands before '0'"):
        fg.convert_(nn.Sequential(nn.Tanh(), nn.Linear(3, 2)), fg.Noisy())
    with pytest.raises(ValueError, match="no noise to anneal"):
        fg.NoiseAnnealing(fg.models.mlp([3, 4, 2]))
    layer = fg.nn.NoisyHardTanh(units=5)
    with pytest.raises(ValueError, match="5 units"):
        layer(torch.randn(3, 4))


def network():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 8), nn.Hardtanh(), nn.Linear(8, 8),
        nn.Hardsigmoid(), nn.Linear(8, 4), nn.Sigmoid(), nn.Hardtanh(-2, 2),
    )  # fmt: skip


@pytest.mark.parametrize("p", ["unit", "layer", 0.5])
@pytest.mark.parametrize("form", KINDS)
def test_convert(form, p, tmp_path):
    torch.manual_seed(0)
    model = network()
    report = fg.convert_(model, fg.Noisy(form, c=3.0, p=p, sigma=0.2))
    assert [c.name for c in report.changes] == ["1", "4", "6", "8"]
    assert isinstance(model[9], nn.Hardtanh)  # another range
    if form in ("NAN", "NAH", "NANIL"):
        assert [model[i].p.numel() for i in (1, 4, 6, 8)] == ([6, 8, 8, 4] if p == "unit" else [1] * 4)
        assert bool((model[4].p.abs() <= 1).all())
    x = 5 * torch.randn(2, 3, 8, 8)
    for x_ in (x, x.contiguous(memory_format=torch.channels_last)):
        model(x_).sum().backward()
    learned = [m.p.grad is not None for m in model.modules() if isinstance(getattr(m, "p", None), nn.Parameter)]
    assert all(learned)
    assert len(learned) == (0 if form in ("NANI", "NANIS") else 4)
    fg.NoiseAnnealing(model, 4, 0.5, every=1).step()
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors", into=network())
    assert again[1].c == model[1].c
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    fixed = network()
    fg.convert_(fixed, fg.Noisy(form, p=p, learn_p=False))
    assert sum(q.numel() for q in fixed.parameters()) == sum(q.numel() for q in network().parameters())


class HardRNN(LoopedRNN):
    """LSTM and GRU with hard gates, written plainly: what is left without noise."""

    def __init__(self, rnn):
        super().__init__()
        self.__dict__.update(
            {k: getattr(rnn, k) for k in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout")}
        )
        self.bidirectional, self.rnn, self.is_lstm = rnn.bidirectional, [rnn], isinstance(rnn, nn.LSTM)

    def _product(self, x, part, suffix):
        rnn = self.rnn[0]
        return F.linear(x, getattr(rnn, f"weight_{part}{suffix}"), getattr(rnn, f"bias_{part}{suffix}"))

    def _cell(self, a, b, states):
        sigmoid, tanh = (lambda x: (x / 4 + 0.5).clamp(0, 1)), (lambda x: x.clamp(-1, 1))
        if self.is_lstm:
            i, f, g, o = (a + b).chunk(4, -1)
            c = sigmoid(f) * states[1] + sigmoid(i) * tanh(g)
            return [sigmoid(o) * tanh(c), c]
        (r, z, n), (hr, hz, hn) = a.chunk(3, -1), b.chunk(3, -1)
        update = sigmoid(z + hz)
        return [(1 - update) * tanh(n + sigmoid(r + hr) * hn) + update * states[0]]

    def forward(self, x, hx):
        y, finals = self._walk(x, list(hx) if self.is_lstm else [hx], 2 if self.is_lstm else 1)
        return y, tuple(finals) if self.is_lstm else finals[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_without_noise_gates_are_hard(kind, batch_first, bidirectional):
    torch.manual_seed(0)
    rnn = kind(5, 4, 2, batch_first=batch_first, bidirectional=bidirectional)
    with torch.no_grad():
        for weight in rnn.parameters():
            weight *= 4
    model = nn.Sequential(copy.deepcopy(rnn))
    fg.convert_(model, fg.Noisy("NAN", alpha=1.0, c=0.0))
    x = torch.randn(3, 6, 5, requires_grad=True) if batch_first else torch.randn(6, 3, 5, requires_grad=True)
    h, c = (torch.randn(2 * (1 + bidirectional), 3, 4) for _ in range(2))
    hx = (h, c) if kind is nn.LSTM else h
    for mode in (True, False):
        model.train(mode)
        (y, last), (its_y, its_last) = model[0](x, hx), HardRNN(rnn)(x, hx)
        torch.testing.assert_close(y, its_y)
        torch.testing.assert_close(last, its_last)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *(getattr(model[0], n) for n, _ in rnn.named_parameters())], dy)
    wanted = torch.autograd.grad(its_y, [x, *rnn.parameters()], dy)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_sequences_and_no_batch(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(5, 4, 2, bidirectional=True, batch_first=True))
    fg.convert_(model, fg.Noisy("NAH"))
    model.eval()
    x, lengths = torch.randn(3, 6, 5), [2, 6, 4]
    h = torch.randn(4, 3, 4)
    hx = (h, h + 1) if kind is nn.LSTM else h
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    y, last = model[0](packed, hx)
    y, found = pad_packed_sequence(y, batch_first=True)
    assert found.tolist() == lengths
    for i, length in enumerate(lengths):
        own = (h[:, i], h[:, i] + 1) if kind is nn.LSTM else h[:, i]
        alone, its = model[0](x[i, :length], own)
        torch.testing.assert_close(y[i, :length], alone)
        for a, b in zip(last if kind is nn.LSTM else [last], its if kind is nn.LSTM else [its], strict=True):
            torch.testing.assert_close(a[:, i], b)
    model.train()[0](pack_sequence([x[0], x[1, :2]]))[0].data.sum().backward()
    with pytest.raises(ValueError, match="initial states"):
        model[0](x, (h[:1], h[:1]) if kind is nn.LSTM else h[:1])
    with pytest.raises(ValueError, match="the input must be"):
        model[0](x[..., :3])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_looped_cells_are_those_of_torch(kind):
    """The plain cells of rnn.py on packed sequences."""
    torch.manual_seed(0)
    rnn = kind(3, 4, 2, bidirectional=True)
    looped = HardRNN(rnn)
    looped._cell = lstm_cell if kind is nn.LSTM else gru_cell
    packed = pack_padded_sequence(torch.randn(5, 3, 3), torch.tensor([3, 5, 1]), enforce_sorted=False)
    h = torch.randn(4, 3, 4)
    hx = (h, h + 1) if kind is nn.LSTM else h
    (y, last), (its, its_last) = looped(packed, hx), rnn(packed, hx)
    torch.testing.assert_close(y.data, its.data)
    torch.testing.assert_close(last, its_last)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_cells(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(5, 4))
    fg.convert_(model, fg.Noisy("NAN", alpha=1.0, c=0.0))
    rnn = nn.Sequential((nn.LSTM if kind is nn.LSTMCell else nn.GRU)(5, 4))
    with torch.no_grad():
        for (_, weight), its in zip(rnn[0].named_parameters(), list(model[0].parameters())[:4], strict=True):
            weight.copy_(its)
    fg.convert_(rnn, fg.Noisy("NAN", alpha=1.0, c=0.0))
    x = torch.randn(3, 2, 5)
    state = None
    for step in x:
        state = model[0](step, state)
    y = state[0] if kind is nn.LSTMCell else state
    torch.testing.assert_close(y, rnn(x)[0][-1])
    first = 0 if kind is nn.LSTMCell else slice(None)
    torch.testing.assert_close(model[0](x[0, 0])[first], model[0](x[0, :1])[first].reshape(-1))
    fg.convert_(noisy := nn.Sequential(kind(5, 4)), fg.Noisy("NAH", c=9.0))
    out = noisy[0](3 * x[0])
    (out[0] if kind is nn.LSTMCell else out).sum().backward()
    assert noisy[0].gates.p.grad is not None


@pytest.mark.parametrize("p", ["unit", "layer", 0.3])
def test_recurrent_parameters_and_files(p, tmp_path):
    def made():
        torch.manual_seed(0)
        return nn.Sequential(nn.LSTM(5, 4, 2))

    model = made()
    fg.convert_(model, fg.Noisy("NAH", c=8.0, p=p))
    with torch.no_grad():
        for name, weight in model[0].named_parameters():
            weight *= 1 if "gates" in name else 6
    y, _ = model(4 * torch.randn(3, 2, 5))
    y.square().sum().backward()
    for layer in ("_l0", "_l1"):
        assert model[0].gates[layer].p.shape == (5, 4 if p == "unit" else 1)
        assert bool((model[0].gates[layer].p.grad != 0).any())
    fg.save(model, tmp_path / "m.safetensors")
    again, x = fg.load(tmp_path / "m.safetensors", into=made()).eval(), torch.randn(3, 2, 5)
    assert torch.equal(again(x)[0], model.eval()(x)[0])
    with pytest.raises(ValueError, match="proj_size"):
        fg.convert_(nn.Sequential(nn.LSTM(5, 4, proj_size=2)), fg.Noisy())
    other = made()
    fg.convert_(other, fg.Noisy(noise="laplace"))
    other(x)[0].sum().backward()


def test_annealing():
    model = network()
    fg.convert_(model, fg.Noisy("NAN"))
    annealing = fg.NoiseAnnealing(model, start=30, end=0.5, every=200)
    scales = []
    for _ in range(2000):
        scales.append(model[1].c)
        annealing.step()
    assert scales[:200] == [30.0] * 200
    assert scales[200] == scales[399] == 30 / 2**0.5
    assert scales[1999] == 30 / 10**0.5
    short = fg.NoiseAnnealing(model, steps=100)
    for _ in range(99):
        short.step()
    assert abs(model[4].c - 0.5) < 0.01
    resumed = fg.NoiseAnnealing(network_of(model), steps=100)
    resumed.load_state_dict(short.state_dict())
    assert resumed.layers[0].c == model[4].c
    line = fg.NoiseAnnealing(model, start=2, end=0.5, steps=10, schedule=fg.LinearDecrease(1, 0))
    line.step()
    assert model[1].c == 2 * 0.9
    at_input = network()
    fg.convert_(at_input, fg.Noisy("NANI"))
    fg.NoiseAnnealing(at_input, 4, 1)
    assert at_input[1].sigma == 4
    for arguments in ({"start": 1, "end": 2}, {"every": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match="NoiseAnnealing"):
            fg.NoiseAnnealing(model, **arguments)


def network_of(model):
    return copy.deepcopy(model)


def test_fit_anneals_and_resumes(tmp_path):
    def run(epochs, resume=False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        fg.convert_(model, fg.Noisy("NAN", c=1.0))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        each = [fg.NoiseAnnealing(model, steps=40), fg.GradientNoise(optimizer, 0.1)]
        x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        y = torch.arange(40) % 3
        fg.fit(model, (x, y), optimizer=optimizer, epochs=epochs, batch_size=10, callbacks=each, progress=False,
               checkpoint=tmp_path / str(epochs > 5), resume=resume)  # fmt: skip
        return model, each

    whole, _ = run(10)
    (tmp_path / "True").rename(tmp_path / "whole")
    run(5)
    (tmp_path / "False").rename(tmp_path / "True")
    resumed, each = run(10, resume=True)
    assert each[0].epoch == 40
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_gradient_noise():
    weight = nn.Parameter(torch.zeros(20_000))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    noise = fg.GradientNoise(optimizer, eta=0.3, gamma=0.55)
    for t in range(3):
        weight.grad = torch.zeros_like(weight)
        with torch.no_grad():
            weight.zero_()
        optimizer.step()
        assert abs(float(weight.detach().std()) - (0.3 / (1 + t) ** 0.55) ** 0.5) < 0.01
        noise.step()
    noise.remove()
    weight.grad = torch.zeros_like(weight)
    before = weight.detach().clone()
    optimizer.step()
    assert torch.equal(weight, before)
    with pytest.raises(ValueError, match="eta"):
        fg.GradientNoise(optimizer, eta=-1)


def test_noisy_relu():
    x = torch.full((100_000,), 0.3)
    for sigma, deviation in ((0.5, 0.5), ("input", float(torch.sigmoid(torch.tensor(0.3)).sqrt()))):
        layer = fg.nn.NoisyReLU(sigma)
        drawn, z = layer(x), torch.randn(100_000)
        assert abs(float(drawn.mean() - (0.3 + deviation * z).relu().mean())) < 0.01
        assert torch.equal(layer.eval()(-x), torch.zeros_like(x))
    model = fg.models.mlp([3, 4, 2])
    fg.convert_(model, fg.NoisyRectifier(0.5))
    fg.NoiseAnnealing(model, 2, 1)
    assert "sigma=2" in str(model)
    with pytest.raises(ValueError, match="sigma"):
        fg.nn.NoisyReLU(-1)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it where the graph breaks
def test_compile_and_double_backward():
    model = nn.Sequential(nn.Linear(4, 8), fg.nn.NoisyHardTanh("NAN", units=8), nn.Linear(8, 2))
    x = torch.randn(5, 4)
    compiled = torch.compile(model, backend="eager")
    torch.manual_seed(0)
    y = compiled(x)
    torch.manual_seed(0)
    torch.testing.assert_close(y, model(x))
    x.requires_grad_()
    (dx,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("make", [
    lambda: fg.nn.NoisyHardTanh("NAN", units=4),
    lambda: converted(nn.LSTM(4, 4), fg.Noisy()),
    lambda: converted(nn.GRU(4, 4), fg.Noisy()),
    lambda: converted(nn.GRUCell(4, 4), fg.Noisy()),
])  # fmt: skip
def test_second_derivatives_by_what_was_saved_are_refused(make):
    """torch's own decorator takes them for 0 when the incoming gradient has none, as that of a sum."""
    model, x = make(), torch.randn(3, 4, requires_grad=True)
    y = model(x)
    y = y[0] if isinstance(y, tuple) else y
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (y.sum() + dx.square().sum()).backward()


def test_tensors_that_hooks_bring_back():
    torch.manual_seed(0)
    layer = fg.nn.NoisyHardTanh("NAN", units=3, dim=1)
    x = (torch.randn(2, 3, 4, 4) * 4).to(memory_format=torch.channels_last).requires_grad_()
    dy = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)

    def gradients():
        torch.manual_seed(1)
        return torch.autograd.grad(layer(x), [x, layer.p], dy)

    plain = gradients()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.contiguous(), lambda t: t):
        torch.testing.assert_close(gradients(), plain)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append((t, t.clone())) or t, lambda t: t):
        gradients()
    assert all(torch.equal(now, before) for now, before in kept)  # the backward pass reads only


def test_odd_tensors():
    layer = fg.nn.NoisyHardTanh("NAH", units=4, c=20.0).eval()
    x, wide = torch.randn(6, 4) * 4, torch.arange(8.0).view(4, 2) * 0.1
    apply = torch.func.functional_call
    torch.testing.assert_close(apply(layer, {"p": wide[:, 0]}, x), apply(layer, {"p": wide[:, 0].clone()}, x))
    plain = fg.nn.NoisyHardTanh("NAN", c=0.0, alpha=1.0)
    assert plain(torch.tensor([1 + 2j]).conj().imag).item() == -1
    nested = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(2, 4)], layout=torch.jagged)
    torch.testing.assert_close(plain(nested).values(), F.hardtanh(nested.values()))
    assert fg.nn.NoisyHardTanh("NAN", noise="laplace")(torch.tensor(0.5)).shape == ()
    for kind in ("NANIL", "NANIS"):
        half = torch.randn(50, dtype=torch.float16, requires_grad=True)
        layer = fg.nn.NoisyHardTanh(kind, exact=True).eval()
        single = half.detach().float().requires_grad_()
        layer(single).sum().backward()
        layer.half()(half).sum().backward()
        torch.testing.assert_close(half.grad.float(), single.grad, rtol=0.02, atol=0.01)


def test_gradients_of_p_vanish_far_out():
    layer = fg.nn.NoisyHardTanh("NAH", p=0.8)
    for size in (30.0, 1e3, 1e7):
        (dp,) = torch.autograd.grad(layer(torch.full((1000,), size)).sum(), layer.p)
        assert dp.abs().item() < 1e-3


def converted(module, config):
    model = nn.Sequential(module)
    fg.convert_(model, config)
    return model[0]


def test_arguments_of_recurrent_networks():
    x = torch.randn(5, 2, 3)
    for kind in (nn.LSTM, nn.GRU):
        rnn = converted(kind(3, 4), fg.Noisy())
        rnn(input=x)
        p = rnn.gates["_l0"].p.clone()
        rnn.reset_parameters()
        assert torch.equal(p, rnn.gates["_l0"].p)
        assert rnn.weight_ih_l0.abs().max() <= 0.5
        with pytest.raises(ValueError, match="at least one time step"):
            rnn(torch.zeros(0, 2, 3))
        assert rnn(torch.zeros(5, 0, 3))[0].shape == (5, 0, 4)
    with pytest.raises(ValueError, match="2 initial states are needed"):
        converted(nn.LSTM(3, 4), fg.Noisy())(x, ())
    for kind in (nn.LSTMCell, nn.GRUCell):
        cell = converted(kind(3, 4), fg.Noisy())
        cell(input=x[0])
        with pytest.raises(ValueError, match="1-D, or all 2-D"):
            cell(torch.randn(2, 12, 3))
    double = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    fg.convert_(double, fg.Noisy())
    assert double[1].p.dtype is torch.float64


@pytest.mark.parametrize(("arguments", "message"), [
    ({"units": 0}, "at least one unit"), ({"noise": 3}, "a name or a torch.distributions"), ({"c": math.inf}, "finite"),
    ({"p": math.inf}, "p must be finite"),
    ({"noise": torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))}, "one distribution of numbers"),
])  # fmt: skip
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=f"NoisyHardTanh: .*{message}"):
        fg.nn.NoisyHardTanh("NAN", **arguments)


def test_gradient_noise_refuses_closures_and_sparse_gradients():
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(model.parameters())
    fg.GradientNoise(optimizer)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse gradients"):
        optimizer.step()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fg.GradientNoise(optimizer)
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0.0)


def test_without_noise_large_numbers_are_clipped():
    x = torch.tensor([1e8, -1e8, float("inf"), -float("inf"), float("nan")])
    for activation, low in ((fg.nn.NoisyHardTanh, -1.0), (fg.nn.NoisyHardSigmoid, 0.0)):
        for kind in ("NAN", "NANI"):
            layer = activation(kind, alpha=1.0, c=0.0, sigma=0.0)
            for mode in (True, False):
                y = layer.train(mode)(x)
                assert y[:4].tolist() == [1.0, low, 1.0, low]
                assert bool(y[4].isnan())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_states_are_checked_before_kernels_see_them(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(3, 4))
    fg.convert_(model, fg.Noisy("NAN", c=0.0))
    cells = nn.Sequential((nn.LSTMCell if kind is nn.LSTM else nn.GRUCell)(3, 4))
    fg.convert_(cells, fg.Noisy())
    pair = (lambda h: (h, h)) if kind is nn.LSTM else (lambda h: h)
    x = torch.randn(2, 5, 3)
    turned = torch.randn(1, 4, 5).transpose(1, 2)
    torch.testing.assert_close(model[0](x, pair(turned))[0], model[0](x, pair(turned.contiguous()))[0])
    for h in (torch.zeros(1, 5, 4, dtype=torch.float64), torch.zeros(1, 1, 4)):
        with pytest.raises(ValueError, match=r"initial states|noisy gates"):
            model[0](x, pair(h))
    for h in (torch.zeros(1, 4), torch.zeros(5, 3), torch.zeros(5, 4, dtype=torch.float64)):
        with pytest.raises((ValueError, RuntimeError)):
            cells[0](x[0], pair(h))
    expected, _ = model.eval()[0](x)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = model[0](x)
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)


def test_annealing_reaches_its_end():
    layer = fg.nn.NoisyHardTanh("NAN")
    for start, end, steps in ((1, 0.6, 100), (0.6, 0.5, 100), (2, 1.5, 50), (30, 0.5, 7), (3, 3, 10)):
        annealing = fg.NoiseAnnealing(layer, start, end, steps=steps)
        assert layer.c == start
        for _ in range(steps - 1):
            annealing.step()
        assert abs(layer.c - end) < 1e-9


def test_units_are_found_where_they_are():
    model = nn.Sequential(nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.Tanh())
    fg.convert_(model, fg.Noisy("NAN", c=5.0))
    assert (model[2].p.numel(), model[2].dim) == (8, -2)
    model(3 * torch.randn(4, 2, 10)).sum().backward()
    images = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh())
    fg.convert_(images, fg.Noisy("NAN", alpha=1.0))
    images.eval()
    x = torch.randn(3, 8, 8)
    torch.testing.assert_close(images(x), images(x[None])[0])
    for layers in ((nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Tanh()), (nn.Identity(), nn.Tanh())):
        with pytest.raises(ValueError, match="no layer stands before"):
            fg.convert_(nn.Sequential(*layers), fg.Noisy())
    with pytest.raises(ValueError, match="p='layer'"):
        model[2](torch.randn(3, 5, 7))


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="normal noise only"):
        fg.nn.NoisyHardTanh("NANI", noise="uniform", exact=True)
    with pytest.raises(ValueError, match="not of gates"):
        fg.convert_(nn.Sequential(nn.LSTM(2, 3)), fg.Noisy("NANI", exact=True))
    with pytest.raises(ValueError, match="one distribution"):
        fg.nn.NoisyHardTanh(noise=torch.distributions.Normal(torch.zeros(3), torch.ones(3)))
    with pytest.raises(ValueError, match="c and sigma"):
        fg.nn.NoisyHardTanh(c=float("nan"))
    layer = fg.nn.NoisyReLU(2.0)
    other = fg.nn.NoisyReLU()
    other.load_state_dict(layer.state_dict())
    assert other.sigma == 2.0


@pytest.mark.long("starts Python processes")
def test_nothing_leaks_at_exit():
    program = (
        "import torch, filigree as fg; m = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh());"
        "fg.convert_(m, fg.Noisy()); loss = m(torch.randn(2, 3)).sum(); loss.backward()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
