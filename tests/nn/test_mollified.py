"""Mollifying networks: the activation, blocks, recurrent gates, annealing, stochastic depth."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import filigree as fg
from filigree.measure.cost import backward
from filigree.nn.mollified.mollified_activation import FUNCTIONS, mollify
from filigree.nn.mollified.mollified_block import MollifiedBlock

ACTIVATIONS = [nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardtanh, nn.ReLU]


def levels(model, p):
    for module in model.modules():
        if isinstance(module, fg.nn.MollifiedBlock | fg.nn.MollifiedGates):
            module.p = p
    return model


def mlp(activation, sizes=(5, 8, 6, 3)):
    torch.manual_seed(0)
    layers = []
    for i, o in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(i, o), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def test_psi_by_hand():
    """tanh at x = 3, a = 2, level 5, |xi| = 1: f = .99505, u = 3, s = 5 (sigmoid(2 (3 - f)) - 1/2)^2."""
    x = torch.tensor([3.0, -3.0, 0.0], dtype=torch.float64)
    f = math.tanh(3)
    s = 5 * (1 / (1 + math.exp(-2 * (3 - f))) - 0.5) ** 2
    y = mollify(x, FUNCTIONS[nn.Tanh], 5.0, 2.0, torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(y, torch.tensor([min(3, f + s), -min(3, f + s), 0], dtype=torch.float64))
    y = mollify(x, FUNCTIONS[nn.Tanh], 5.0, 2.0, torch.full((3,), 100.0, dtype=torch.float64))
    assert torch.equal(y, x)  # much noise: the line
    y = mollify(torch.tensor([-2.0]), FUNCTIONS[nn.ReLU], 1.0, 4.0, torch.tensor([1e9]))
    assert float(y) == -2  # also where ReLU is 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_psi_between_the_function_and_its_line(activation):
    function = FUNCTIONS[activation]
    x = torch.linspace(-6, 6, 49, dtype=torch.float64)
    xi = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, f = function.slope * x, function.value(x) - function.at_zero
    assert torch.equal(mollify(x, function, 0.0, 1.5, xi), f)
    previous = f.abs()
    for level in (0.3, 3.0, 300.0):
        drawn = mollify(x, function, level, 1.5, xi)
        assert bool(((drawn.abs() <= u.abs() + 1e-12) & (drawn.abs() >= f.abs() - 1e-12)).all())
        mean = mollify(x, function, level, 1.5, None)
        error = 5 * drawn.std(0) / math.sqrt(20_000) + 1e-5
        assert bool(((drawn.mean(0) - mean).abs() < error).all())
        assert bool((mean.abs() >= previous - 1e-12).all())  # more noise, more linear
        previous = mean.abs()
    torch.testing.assert_close(mollify(x, function, 1e12, 1.5, None), u, atol=1e-4, rtol=0)
    inputs = (torch.randn(7, dtype=torch.float64).requires_grad_(),)
    noise = torch.randn(7, dtype=torch.float64)
    for xi_ in (noise, None):
        assert torch.autograd.gradcheck(lambda x, xi=xi_: mollify(x, function, 2.0, 1.5, xi), inputs)
        at_zero = torch.zeros(7, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(mollify(at_zero, function, 2.0, 1.5, xi_).sum(), at_zero)
        assert bool((slope != 0).all()) or activation is nn.ReLU  # units that read nothing but zeros learn too


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_plain_network_in_the_limit(activation):
    plain = mlp(activation)
    x = torch.randn(4, 5)
    back, shifted = copy.deepcopy(plain), copy.deepcopy(plain)
    fg.convert_(back, fg.Mollified(shift_back=True))
    fg.convert_(shifted, fg.Mollified())
    for mode in (True, False):
        assert torch.equal(levels(back, 0.0).train(mode)(x), plain(x))
    h = x
    for i in (0, 2):
        h = plain[i + 1](plain[i](h)) - FUNCTIONS[activation].at_zero
    torch.testing.assert_close(levels(shifted, 0.0)(x), plain[4](h))
    assert torch.equal(levels(shifted, 0.7).eval()(x), levels(shifted, 0.0)(x))  # eval mode counts as p = 0


@pytest.mark.parametrize("skip", ["pad", "project"])
def test_the_identity_in_the_limit(skip):
    model = mlp(nn.Sigmoid)
    report = fg.convert_(model, fg.Mollified(skip=skip))
    assert [c.name for c in report.changes] == ["0", "2"]  # the last layer stays
    assert isinstance(model[4], nn.Linear)
    x = torch.randn(4, 5)
    y = model(x)
    h = F.pad(x, (0, 3))[:, :6]
    if skip == "project":
        h = model[2].projection(model[0].projection(x))
    assert torch.equal(y, model[4](h))
    y.sum().backward()
    assert model[0].body.weight.grad is None  # what is skipped costs nothing


def test_paths_are_drawn_for_each_unit_and_sample():
    torch.manual_seed(0)
    block = MollifiedBlock(nn.Linear(50, 50), fg.nn.MollifiedActivation(nn.Tanh(), a=1.0))
    block.p = 0.3
    x = torch.randn(400, 50)
    copied = block(x) == x
    assert abs(float(copied.float().mean()) - 0.3) < 0.01
    assert float(copied.float().mean(0).std()) < 0.04
    assert float(copied.float().mean(1).std()) < 0.1
    expected = copy.deepcopy(block)
    expected.expected = expected.activation.expected = True
    mean = torch.stack([block(x[:5]) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(expected.eval()(x[:5]), mean, atol=0.1, rtol=0)
    with pytest.raises(ValueError, match="p must be"):
        block.p = 1.5
    with pytest.raises(ValueError, match="projection"):
        MollifiedBlock(nn.Linear(2, 2), skip="project")


def test_residual_connections_and_images():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 4, 3, 2), nn.ReLU(),
                          nn.Flatten(), nn.Linear(4 * 9, 5))  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    model = copy.deepcopy(plain)
    fg.convert_(model, fg.Mollified(residual=True))
    skip = F.pad(x, (0, 0, 0, 0, 0, 3))
    h = torch.tanh(plain[1](plain[0](x)) + skip)
    h = torch.relu(plain[3](h) + F.adaptive_avg_pool2d(h[:, :4], 3))
    torch.testing.assert_close(levels(model, 0.0)(x), plain[6](h.flatten(1)))
    levels(model, 0.5)(x).sum().backward()
    full = levels(model, 1.0)(x)
    torch.testing.assert_close(full, plain[6](F.adaptive_avg_pool2d(skip[:, :4], 3).flatten(1)))
    fg.convert_(other := copy.deepcopy(plain), fg.Mollified(skip="project"))
    assert levels(other, 1.0)(x).shape == (2, 5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_networks_begin_as_bags_of_words(kind, bidirectional):
    """At p = 1 with products with the state off, the last state is a mean over the sequence, whatever its order."""
    torch.manual_seed(0)
    model = nn.Sequential(kind(5, 4, batch_first=True, bidirectional=bidirectional))
    plain = copy.deepcopy(model)
    fg.convert_(model, fg.Mollified(deterministic=True, a=1.0))
    x = torch.randn(3, 7, 5)
    last = lambda y: y[1][0] if kind is nn.LSTM else y[1]  # noqa: E731
    first = last(model(x))
    torch.testing.assert_close(last(model(x[:, torch.randperm(7)])), first)
    packed = pack_padded_sequence(x, torch.tensor([7, 3, 5]), batch_first=True, enforce_sorted=False)
    swapped = x.clone()
    swapped[1, :3] = x[1, [2, 0, 1]]
    again = pack_padded_sequence(swapped, torch.tensor([7, 3, 5]), batch_first=True, enforce_sorted=False)
    torch.testing.assert_close(last(model(again)), last(model(packed)))
    alone = last(model(x[1:2, :3]))
    torch.testing.assert_close(last(model(packed))[:, 1:2], alone)
    if kind is nn.GRU:  # the mean of the candidates
        n = x @ plain[0].weight_ih_l0[8:].T + plain[0].bias_ih_l0[8:] + 0 * plain[0].bias_hh_l0[8:]
        psi = mollify(n, FUNCTIONS[nn.Tanh], 1.0, 1.0, None)
        torch.testing.assert_close(first[0], psi.mean(1))
    assert not torch.allclose(last(levels(model, 0.3)(x[:, torch.randperm(7)])), last(model(x)))
    pad_packed_sequence(model(packed)[0], batch_first=True)[0].sum().backward()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_networks_end_as_plain_ones(kind):
    torch.manual_seed(0)
    plain = nn.Sequential(kind(5, 4, 2))
    model = copy.deepcopy(plain)
    fg.convert_(model, fg.Mollified())
    x, weight = 3 * torch.randn(6, 2, 5), dict(plain[0].named_parameters())
    sigmoid = lambda x: (x / 4 + 0.5).clamp(0, 1)  # noqa: E731
    inputs = x
    for layer in range(2):
        h = c = torch.zeros(2, 4)
        out = []
        for step in inputs:
            a = step @ weight[f"weight_ih_l{layer}"].T + weight[f"bias_ih_l{layer}"]
            b = h @ weight[f"weight_hh_l{layer}"].T + weight[f"bias_hh_l{layer}"]
            if kind is nn.LSTM:
                i, f, g, o = (a + b).chunk(4, -1)
                c = sigmoid(f) * c + sigmoid(i) * g.tanh()
                h = sigmoid(o) * c.tanh()
            else:
                (r, z, n), (hr, hz, hn) = a.chunk(3, -1), b.chunk(3, -1)
                z = sigmoid(z + hz)
                h = (1 - z) * (n + sigmoid(r + hr) * hn).tanh() + z * h
            out.append(h)
        inputs = torch.stack(out)
    torch.testing.assert_close(levels(model, 0.0)(x)[0], inputs)
    torch.testing.assert_close(levels(model, 0.5).eval()(x)[0], inputs)


def test_gates_are_drawn_towards_their_means():
    """At p = 1: means near g where clipping does not bias them, exactly g where deterministic; t of the annealing."""
    torch.manual_seed(0)
    gates = fg.nn.mollified.mollified_rnn.MollifiedLSTMGates(3)
    x = torch.linspace(-0.2, 0.2, 5).expand(40_000, -1)
    assert bool(((gates._gate(x, 0.5).mean(0) - 0.5).abs() < 0.01).all())
    gates.deterministic = True
    for g in (1.0, 0.5, 0.02, 0.0):
        torch.testing.assert_close(gates._gate(x[:2], g), torch.full((2, 5), g))
    gates.time, gates.step = "step", 8
    assert gates._share(3, x) == 1 / 8
    gates.time = "position"
    assert gates._share(4, x) == 1 / 4


@pytest.mark.parametrize(
    "first",
    [fg.Sparse(fg.ErdosRenyi(density=0.4)), fg.ACDC(2, relu=False), fg.Asymmetric.topk(2), fg.LowRank(3)],
    ids=lambda c: type(c).__name__,
)
def test_feedforward_with_other_layers(first, tmp_path):
    def made():
        torch.manual_seed(0)
        return fg.models.mlp([12, 16, 16, 4])

    model, plain = made(), made()
    for each in (model, plain):
        fg.convert_(each, first, where="fc[12]")
    fg.convert_(model, fg.Mollified())
    x = torch.randn(6, 12)
    assert torch.equal(levels(model, 0.0)(x), plain(x))  # a fused ReLU too
    levels(model, 0.5)(x).sum().backward()
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors")
    assert again.fc1.p == 0.5
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_mollified_sparse_networks_evolve():
    model = fg.models.mlp([12, 30, 30, 3])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=3)))
    fg.convert_(model, fg.Mollified())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    evolution = fg.Evolution(model, optimizer, fg.Constant(0.3))
    annealing = fg.MollificationAnnealing(model, k=5, stop=0.3)
    x = torch.randn(60, 12)
    y = (x[:, 0] > 0).long()
    fg.fit(model, (x, y), optimizer=optimizer, epochs=30, batch_size=20, callbacks=[evolution, annealing],
           progress=False)  # fmt: skip
    assert annealing.done
    assert fg.evaluate(model, (x, y))["accuracy"] > 0.9


def test_annealing_follows_the_formula():
    model = mlp(nn.Tanh, (5, 8, 6, 6, 3))
    fg.convert_(model, fg.Mollified())
    annealing = fg.MollificationAnnealing(model, k=20, stop=0.5, average=0.9)
    blocks = [model[0], model[2], model[4]]
    assert [b.p for b in blocks] == [1.0] * 3
    annealing.step(2.0)
    assert [b.p for b in blocks] == [1 - math.exp(-20 * 2.0 * i / 3) for i in (1, 2, 3)]
    annealing.step(1.0)
    v = 0.9 * 2.0 + 0.1 * 1.0
    assert [b.p for b in blocks] == [1 - math.exp(-20 * v * i / (2 * 3)) for i in (1, 2, 3)]
    assert blocks[0].p < blocks[1].p < blocks[2].p
    state = annealing.state_dict()
    while not annealing.done:
        before = [b.p for b in blocks]
        annealing.step(1.0)
    assert sum(before) > 0.5
    assert [b.p for b in blocks] == [0.0] * 3
    annealing.step(50.0)
    assert [b.p for b in blocks] == [0.0] * 3  # for good
    annealing.load_state_dict(state)
    assert blocks[0].p == 1 - math.exp(-20 * v / (2 * 3))
    with pytest.raises(ValueError, match="no blocks"):
        fg.MollificationAnnealing(mlp(nn.Tanh))
    with pytest.raises(ValueError, match="needs the loss"):
        fg.MollificationAnnealing(model).step()
    for arguments in ({"k": -1}, {"stop": -1}, {"average": 1}, {"loss": "test"}):
        with pytest.raises(ValueError, match="expected k"):
            fg.MollificationAnnealing(model, **arguments)


def test_fit_anneals_by_validation_loss():
    model = mlp(nn.Tanh)
    fg.convert_(model, fg.Mollified())
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    annealing = fg.MollificationAnnealing(model, k=3, loss="validation", average=0.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    history = fg.fit(model, (x, y), optimizer=optimizer, epochs=2, batch_size=10, validation=(x, y),
                     callbacks=annealing, progress=False)  # fmt: skip
    assert annealing.value == history[1]["val_loss"]
    assert annealing.epoch == 8
    with pytest.raises(ValueError, match="needs validation data"):
        fg.fit(model, (x, y), optimizer=optimizer, epochs=1, progress=False,
               callbacks=fg.MollificationAnnealing(model, loss="validation"))  # fmt: skip


def test_residual_networks_and_stochastic_depth(tmp_path):
    torch.manual_seed(0)
    plain = fg.models.resnet((2, 1), 8)
    model = copy.deepcopy(plain)
    fg.convert_(model, fg.StochasticDepth(0.5))
    chances = [block.survival for name, block in model.named_children() if name.startswith("block")]
    assert [round(chance, 3) for chance in chances] == [0.833, 0.667, 0.5]
    x = torch.randn(3, 3, 8, 8)
    calls = []
    model.block2_1.conv1.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(200):
        model(x)
    assert 70 < len(calls) < 130
    block = plain.block1_1.eval()
    model.eval()
    h = torch.randn(2, 8, 4, 4)
    branch = block.bn2(block.conv2(block.relu1(block.bn1(block.conv1(h)))))
    fresh = copy.deepcopy(plain).eval()
    fresh.block1_1.survival = 0.8
    torch.testing.assert_close(fresh.block1_1(h), torch.relu(0.8 * branch + h))
    both = copy.deepcopy(plain)
    fg.convert_(both, fg.StochasticDepth(0.5))
    report = fg.convert_(both, fg.Mollified())
    assert [c.name for c in report.changes] == ["conv", "block1_1", "block1_2", "block2_1"]
    levels(both.train(), 0.5)(x).sum().backward()
    skipped = F.adaptive_avg_pool2d(F.pad(x, (0, 0, 0, 0, 0, 13)), 1).flatten(1)
    torch.testing.assert_close(levels(both, 1.0)(x), both.fc(skipped))
    mollified = copy.deepcopy(plain).train()
    expected = copy.deepcopy(mollified)
    fg.convert_(mollified, fg.Mollified())
    torch.testing.assert_close(levels(mollified, 0.0)(x), expected(x))
    fg.save(both, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors")
    assert again.block1_1.body.survival == both.block1_1.body.survival
    assert torch.equal(again.eval()(x), both.eval()(x))


def test_bad_input():
    with pytest.raises(ValueError, match="None follows '0'"):
        fg.convert_(nn.Sequential(nn.Linear(3, 2)), fg.Mollified())
    with pytest.raises(ValueError, match="c must"):
        fg.Mollified(c=-1)
    with pytest.raises(ValueError, match="skip"):
        fg.Mollified(skip="copy")
    with pytest.raises(ValueError, match="last"):
        fg.StochasticDepth(0)
    with pytest.raises(ValueError, match="activation"):
        fg.models.mlp([3, 4, 2], activation="swish")


def test_compile():
    model = mlp(nn.Tanh)
    fg.convert_(model, fg.Mollified())
    levels(model, 0.4)
    x = torch.randn(4, 5)
    compiled = torch.compile(model.eval(), backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled.train()(x).sum().backward()


def test_both_directions_anneal_together():
    model = nn.Sequential(nn.LSTM(3, 4, 2, bidirectional=True))
    fg.convert_(model, fg.Mollified(time="step", expected=True))
    annealing = fg.MollificationAnnealing(model, k=10)
    annealing.step(1.0)
    annealing.step(1.0)
    level = {name: gates.p for name, gates in model[0].gates.items()}
    assert level["_l0"] == level["_l0_reverse"] < level["_l1"] == level["_l1_reverse"]
    other = nn.Sequential(nn.LSTM(3, 4, 2, bidirectional=True))
    fg.convert_(other, fg.Mollified(time="step", expected=True))
    other.load_state_dict(model.state_dict())
    assert other[0].gates["_l1"].step == 2


def test_networks_that_skip_can_be_timed():
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    for config in (fg.StochasticDepth(0.1), fg.Mollified()):
        model = fg.models.resnet((3, 3), 4)
        fg.convert_(model, config)
        for _ in range(5):
            backward(model, x, y)()


def test_what_is_no_block_is_left():
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4), nn.Tanh(), nn.Linear(4, 2))
    report = fg.convert_(model, fg.Mollified())
    assert [change.name for change in report.changes] == ["3"]
    model(torch.randn(2, 3, 8))
    with pytest.raises(ValueError, match="range"):
        fg.Mollified(a=(2.0, -2.0))


def test_blocks_of_linear_layers_take_any_shape():
    for ins, outs in ((6, 4), (4, 6)):
        net = nn.Sequential(nn.Linear(ins, outs), nn.Tanh())
        fg.convert_(net, fg.Mollified())
        for shape in ((ins,), (3, ins), (2, 3, ins), (2, 3, 5, ins)):
            x = torch.randn(shape)
            skipped = F.pad(x, (0, max(0, outs - ins)))[..., :outs]
            assert torch.equal(levels(net, 1.0)(x), skipped)
            some = levels(net, 0.5)(torch.cat([x.reshape(-1, ins)] * 500).view(-1, *shape)) == skipped
            assert 0.4 < some.float().mean() < 0.6


def test_single_images():
    net = nn.Sequential(nn.Conv2d(1, 5, 3, 2, padding=1), nn.Tanh())
    fg.convert_(net, fg.Mollified())
    x = torch.randn(2, 1, 8, 8)
    for p in (1.0, 0.5):
        torch.manual_seed(0)
        assert levels(net, p)(x[0]).shape == (5, 4, 4)
    torch.testing.assert_close(levels(net, 1.0)(x[0]), net(x)[0])
    assert torch.equal(net(x)[:, 1:], torch.zeros(2, 4, 4, 4))


def test_a_frozen_norm_stays_frozen():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    fg.convert_(net, fg.Mollified())
    net[0].body[1].eval()
    net(torch.randn(8, 4))
    assert not net[0].body[1].training
    assert net[0].body[0].training


def test_a_fused_relu_before_a_norm_stays_where_it_is():
    fused = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    fg.convert_(fused, fg.Sparse(fg.ErdosRenyi(density=0.6)))
    net = nn.Sequential(fused[0], nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.randn(5, 6)
    wanted = net(x)
    fg.convert_(net, fg.Mollified(shift_back=True))
    torch.testing.assert_close(levels(net, 0.0).eval()(x), wanted)


def test_shared_layers_are_refused_and_projections_have_the_type_of_the_model():
    layer, act = nn.Linear(6, 6), nn.Tanh()
    net = nn.Sequential(layer, act, layer, act)
    with pytest.raises(ValueError, match="'0' is used in 2 places, 0, 2"):
        fg.convert_(net, fg.Mollified())
    assert net[0] is layer
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh()).double()
    fg.convert_(net, fg.Mollified(skip="project"))
    assert net(torch.randn(3, 6).double()).dtype is torch.float64


def test_losses_that_are_no_level():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    fg.convert_(net, fg.Mollified())
    annealing = fg.MollificationAnnealing(net, k=100.0)
    annealing.step(1.0)
    before = annealing.value
    annealing.step(math.nan)
    assert annealing.value == before
    with pytest.raises(ValueError, match="at least 0"):
        annealing.step(-0.01)
    with pytest.raises(ValueError, match="expected k"):
        fg.MollificationAnnealing(net, k=math.nan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("a", [0.0, 2.0])
def test_slopes_of_the_expectation_are_finite(dtype, kind, a):
    x = torch.tensor([0.0, 1e-4, 0.5, 4.0, 30.0, 300.0, 6e4], dtype=dtype)
    x = torch.cat([x, -x]).requires_grad_()
    y = mollify(x, FUNCTIONS[kind], 0.5, torch.tensor(a, dtype=dtype, requires_grad=True), None)
    slopes = torch.autograd.grad(y.sum(), x)[0]
    assert slopes.isfinite().all()
    exact = x.detach().double().requires_grad_()
    y = mollify(exact, FUNCTIONS[kind], 0.5, torch.tensor(a, dtype=torch.float64, requires_grad=True), None)
    allowed = {torch.float16: 0.01, torch.float32: 1e-5, torch.float64: 0.0}[dtype]
    torch.testing.assert_close(slopes.double(), torch.autograd.grad(y.sum(), exact)[0], rtol=allowed, atol=allowed)


def test_levels_in_low_precision():
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).bfloat16()
    fg.convert_(net, fg.Mollified())
    x = torch.full((4000, 64), -7.0, dtype=torch.bfloat16)
    share = (levels(net, 0.001)(x) == -7).float().mean().item()
    assert abs(share - 0.001) < 5 * math.sqrt(0.001 / x.numel())
