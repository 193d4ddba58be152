"""Sparsified backpropagation against dense gradients that are masked after the fact (Srivastava 2022, chapters 6-8)."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import filigree as fg
from filigree.nn import AsymmetricConv2d, AsymmetricGRU, AsymmetricLinear, AsymmetricLSTM, AsymmetricSparseLinear
from filigree.nn.asymmetric.asymmetric_linear import asymmetric_linear
from filigree.ops import selection


def keep(x, k):
    """The k largest magnitudes of each row, ties by lower index: a stable sort."""
    order = x.abs().sort(dim=-1, descending=True, stable=True).indices[..., : min(k, x.shape[-1])]
    return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, order, True)


def unify(x, k):
    return keep(x.abs().sum(0, keepdim=True), k).expand_as(x)


def reference(method, x, w, delta, unified=False):
    """dx, dW, db of one layer, by masks on dense products."""
    choose = unify if unified else keep
    by_w = lambda k: keep(w.t().contiguous(), k).t()  # noqa: E731
    if method == "topk":
        d = delta * choose(delta, 4)
        return d @ w, d.t() @ x, d.sum(0)
    if method == "partial":
        d = delta * choose(delta, 4)
        return d @ w, d.t() @ (x * choose(x, 6)), d.sum(0)
    d, xs, t = delta * choose(delta, 5), x * choose(x, 5), by_w(5)
    if method == "complete":
        return d @ (w * t), d.t() @ xs, d.sum(0)
    mask = choose(delta, 5)[:, :, None] | t[None]  # (batch, out, in): the union
    dx = torch.einsum("bo,boi,oi->bi", delta, mask.to(x), w)
    dw = torch.einsum("bo,boi,bi->oi", delta, mask.to(x), xs)
    neurons = choose(delta, 5) | t.any(1)
    return dx, dw, (delta * neurons).sum(0)


METHODS = {
    "topk": fg.Asymmetric.topk(4),
    "partial": fg.Asymmetric.partial(4, 6),
    "complete": fg.Asymmetric.complete(5),
    "union": fg.Asymmetric.complete(5, neurons="union"),
}


def with_options(config, **options):
    return type(config)(**{name: getattr(config, name) for name in config.__dataclass_fields__} | options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0, 20), (1, 20), (7, 33), (128, 100)])
@pytest.mark.parametrize("k", [1, 3, 20, 1000])
def test_top_is_a_stable_sort(isa, dtype, shape, k):
    x = torch.randn(shape, dtype=dtype)
    x[:, ::4] = 0
    x[1:2] = 0  # an all-zero sample
    x[2:4] = x[2:4].sign()  # ties everywhere
    x[4:5] = 1e-42  # denormal
    expected = x * keep(x, k)
    kept = selection.top(x, k)
    assert torch.equal(selection.dense(kept), expected)
    w, y = torch.randn(shape[1], 19, dtype=dtype), torch.randn(shape[0], 23, dtype=dtype)
    torch.testing.assert_close(selection.times(kept, w), expected @ w, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(selection.t_times(kept, y), expected.t() @ y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(selection.sums(kept), expected.sum(0), rtol=1e-4, atol=1e-4)


def test_top_of_other_orders_and_infinities():
    x = torch.randn(9, 50)
    x[0, 3], x[1, 4] = float("inf"), float("-inf")
    for ordered in (x, x.t().contiguous().t(), torch.randn(18, 100)[::2, 25:75].copy_(x)):
        assert torch.equal(selection.dense(selection.top(ordered, 7)), torch.where(keep(x, 7), x, 0))


@pytest.mark.parametrize("k2", [1, 3])
def test_outer_products_of_thin_rows(isa, k2):
    d, x = torch.randn(33, 40), torch.randn(33, 200)
    kept, thin = selection.top(d, 5), selection.top(x, k2, transposed=False)
    assert selection.is_thin(thin)
    expected = (d * keep(d, 5)).t() @ (x * keep(x, k2))
    torch.testing.assert_close(selection.t_times(kept, thin), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [(1, 12, 20), (9, 12, 20), (64, 30, 40), (17, 20, 3)])
def test_gradients_are_the_masked_dense_ones(isa, method, sizes, unified):
    batch, n_in, n_out = sizes
    for dtype in (torch.float32, torch.float64):
        linear = nn.Linear(n_in, n_out, dtype=dtype)
        layer = AsymmetricLinear.like(linear).set_rule(with_options(METHODS[method], unified=unified), "fc")
        x = torch.randn(batch, n_in, dtype=dtype, requires_grad=True)
        y = layer(x)
        torch.testing.assert_close(y, linear(x))
        delta = torch.randn_like(y)
        delta[:, ::3] = 0
        delta[:1] = 0
        if batch > 2:
            delta[2] = delta[2].sign()
        got = torch.autograd.grad(y, [x, linear.weight, linear.bias], delta)
        expected = reference(method, x.detach(), linear.weight.detach(), delta, unified)
        for mine, its in zip(got, expected, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_all_kept_is_exact_backpropagation(method, unified):
    plain = fg.models.mlp([10, 16, 16, 4])
    model = copy.deepcopy(plain)
    make = {"topk": lambda: fg.Asymmetric.topk(100, unified=unified),
            "partial": lambda: fg.Asymmetric.partial(100, 100, unified=unified),
            "complete": lambda: fg.Asymmetric.complete(100, unified=unified),
            "union": lambda: fg.Asymmetric.complete(1.0, neurons="union", unified=unified)}[method]  # fmt: skip
    fg.convert_(model, make())
    x, y = torch.randn(8, 10), torch.randint(0, 4, (8,))
    for network in (plain, model):
        nn.functional.cross_entropy(network(x), y).backward()
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


@pytest.mark.parametrize("method", METHODS)
def test_backward_is_linear_in_the_incoming_gradient_where_the_choice_stays(method):
    layer = AsymmetricLinear.like(nn.Linear(12, 20, dtype=torch.float64)).set_rule(METHODS[method], "fc")
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    y, a = layer(x), torch.randn(5, 20, dtype=torch.float64)
    b = a * 0.3 * torch.rand(5, 1, dtype=torch.float64)  # the same order of magnitudes: the same choice
    of = lambda dy: torch.autograd.grad(y, [x, layer.weight, layer.bias], dy, retain_graph=True)  # noqa: E731
    for sum_, one, two in zip(of(a + 2 * b), of(a), of(b), strict=True):
        torch.testing.assert_close(sum_, one + 2 * two)


def test_eval_mode_is_exact_and_second_derivatives_are_refused():
    layer = AsymmetricLinear.like(linear := nn.Linear(12, 20)).set_rule(fg.Asymmetric.topk(1), "fc")
    x = torch.randn(5, 12)
    expected = torch.autograd.grad(linear(x).square().sum(), linear.weight)[0]
    assert not torch.equal(torch.autograd.grad(layer(x).square().sum(), linear.weight)[0], expected)
    layer.eval()
    assert torch.equal(torch.autograd.grad(layer(x).square().sum(), linear.weight)[0], expected)
    layer.train()
    first = torch.autograd.grad(layer(x).square().sum(), linear.weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="twice"):
        first.sum().backward()


@pytest.mark.parametrize("inputs", [None, fg.TopK(6)])
def test_fused_relu(inputs):
    config = fg.Asymmetric(sensitivity=fg.TopK(4), inputs=inputs)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 30), nn.ReLU())
    fused, apart = copy.deepcopy(model), copy.deepcopy(model)
    fg.convert_(fused, config)
    fg.convert_(apart, with_options(config, fuse=False))
    assert (fused[0].relu, apart[0].relu) == (True, False)
    x, dy = torch.randn(7, 12), torch.randn(7, 30)
    ours = torch.autograd.grad(fused(x), list(fused.parameters()), dy)
    theirs = torch.autograd.grad(apart(x), list(apart.parameters()), dy)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(fused[0].dense()(x), model[:2](x))


# -- chapter 6 as properties ------------------------------------------------------------------------------------------

FUNCTIONS = [
    fg.TopK(3), fg.TopK(0.4), fg.TopK(3, ties="random"), fg.RandomK(3), fg.UnscaledDropout(0.5), fg.Threshold(0.5),
    fg.CustomSparsification(lambda x: torch.where(x > 0, x, 0)),
]  # fmt: skip
vectors = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12)


def test_the_worked_example():
    x = torch.tensor([[10.0, -20, 30, -40]])
    assert fg.TopK(2)(x).tolist() == [[0, 0, 30, -40]]  # Srivastava 2022, 6.1.2


@given(vectors, st.sampled_from(FUNCTIONS))
@settings(deadline=None)
def test_sparsification_functions_keep_or_drop(numbers, function):
    x = torch.tensor([numbers])
    y = function(x)
    assert bool(((y == 0) | (y == x)).all())  # definition 6
    if isinstance(function, fg.TopK) and function.ties == "index":
        assert torch.equal(y, x * keep(x, 3 if function.k == 3 else max(1, round(0.4 * len(numbers)))))


@given(st.integers(0, 10**6), st.sampled_from(list(METHODS)), st.booleans())
@settings(deadline=None, max_examples=25)
def test_theorem_1_the_parameters_used_backward_are_among_those_used_forward(seed, method, unified):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 11), nn.ReLU(), nn.Linear(11, 3))
    fg.convert_(model, with_options(METHODS[method], unified=unified))
    with fg.track_usage(model) as usage:
        model(torch.randn(4, 8)).square().sum().backward()
    for name, used in usage.items():
        layer = model.get_submodule(name)
        whole = torch.zeros_like(layer.weight, dtype=torch.bool)
        for sample in range(4):
            assert not bool((used.backward(sample) & ~used.forward(sample)).any())
            whole |= used.backward(sample)
        assert torch.equal(whole, used.backward())  # over the batch: the union
        assert not bool((layer.weight.grad[~used.backward()] != 0).any())
        assert not bool((layer.bias.grad[~used.biases()] != 0).any())
        if method != "union":
            assert int(used.backward(0).any(1).sum()) <= 5


def test_symmetric_and_asymmetric_training():
    x = torch.randn(6, 8)
    for config, symmetric in ((fg.Asymmetric(), True), (fg.Asymmetric(forward=fg.UnscaledDropout(0.4)), True),
                              (fg.Asymmetric.topk(2), False), (fg.Asymmetric.topk(11), True)):  # fmt: skip
        model = nn.Sequential(nn.Linear(8, 11))
        fg.convert_(model, config)
        with fg.track_usage(model) as usage:
            model(x).square().sum().backward()
        assert all(usage["0"].is_symmetric(sample) == symmetric for sample in range(6)), config


def test_watching_sparse_layers_and_convolutions():
    sparse = fg.nn.SparseLinear(12, 20, fg.ErdosRenyi(density=0.5))
    for unified in (False, True):
        model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(24, 12), copy.deepcopy(sparse))
        config = fg.Asymmetric.partial(3, 4, unified=unified)
        fg.convert_(model, config)
        with fg.track_usage(model) as usage:
            model(torch.randn(5, 2, 4, 4)).square().sum().backward()
        assert list(usage) == ["0", "2", "3"]
        used = usage["3"].backward()
        assert used.shape == model[3].values.shape
        assert not bool((model[3].values.grad[~used] != 0).any())
        assert bool((model[3].values.grad != 0).any())
        kernels_used = usage["0"].backward()
        assert kernels_used.shape == (6, 2)
        assert not bool((model[0].weight.grad.flatten(2).any(2) & ~kernels_used).any())
        assert int(usage["0"].backward(0).any(1).sum()) <= 3
        assert not bool((model[0].bias.grad[~usage["0"].biases()] != 0).any())
        assert not usage["0"].moved().any()


def test_moved_is_not_used():
    model = nn.Sequential(nn.Linear(8, 11))
    fg.convert_(model, fg.Asymmetric.topk(1))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(50, 8)).square().sum().backward()
    optimizer.step()
    with fg.track_usage(model) as usage:
        optimizer.zero_grad()
        model(torch.randn(1, 8)).square().sum().backward()
        optimizer.step()
    assert usage["0"].backward().any(1).sum() == 1
    assert usage["0"].moved().any(1).sum() > 1  # by momentum


def test_forward_sparsification_drops_without_rescaling():
    model = nn.Sequential(nn.Linear(8, 400))
    plain = copy.deepcopy(model)
    fg.convert_(model, fg.Asymmetric(forward=fg.UnscaledDropout(0.4)))
    x = torch.randn(50, 8)
    y, full = model(x), plain(x)
    dropped = y == 0
    assert 0.35 < dropped.float().mean() < 0.45
    torch.testing.assert_close(y[~dropped], full[~dropped])
    torch.testing.assert_close(model.eval()(x), full)


# -- k ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -1, 1.5, 0.0, True, "many", None, [3, 0], {"*": -2}])
def test_bad_k_is_named(k):
    with pytest.raises(ValueError, match="k must be an integer of at least 1, a fraction"):
        fg.TopK(k)


def test_bad_configs_are_named():
    with pytest.raises(ValueError, match="both k1 and k2"):
        fg.Asymmetric.partial(40, None)
    with pytest.raises(ValueError, match="expected a sparsification function"):
        fg.Asymmetric(sensitivity=40)
    with pytest.raises(ValueError, match="no module was selected"):
        fg.convert_(nn.Sequential(nn.Bilinear(3, 4, 5)), fg.Asymmetric.topk(2))
    with pytest.raises(ValueError, match="no pattern for the layer '1'"):
        fg.convert_(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)), fg.Asymmetric.topk({"0": 1}))
    model = nn.Sequential(nn.Linear(3, 4))
    fg.convert_(model, fg.Asymmetric(sensitivity=lambda x: 2 * x))
    with pytest.raises(ValueError, match="not a sparsification function"):
        model(torch.ones(2, 3)).sum().backward()


def test_k_by_layer_and_epoch():
    model = nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 50))
    fg.convert_(model, fg.Asymmetric.topk({"0": [10, 0.5], "*": fg.LinearDecrease(1.0, 0.0)}))
    with pytest.raises(ValueError, match="number of epochs"):
        model(torch.randn(2, 3))
    epochs = fg.SelectionSchedule(model, epochs=4)
    seen = []
    for _ in range(3):
        seen.append((model[0].rule.sensitivity.k, model[1].rule.sensitivity.k))
        epochs.step()
    assert seen == [(10, 1.0), (0.5, 0.75), (0.5, 0.5)]
    again = fg.SelectionSchedule(model, epochs=4)
    again.load_state_dict(epochs.state_dict())
    assert model[1].rule.sensitivity.k == 0.25


def test_random_ties_keep_any_of_the_equal():
    x = torch.ones(400, 10)
    share = (fg.TopK(3, ties="random")(x) != 0).float().mean(0)
    assert bool(((share > 0.15) & (share < 0.45)).all())
    assert (fg.TopK(3)(x) != 0).sum(0).tolist() == [400] * 3 + [0] * 7


# -- other layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("relu", [False, True])
def test_sparse_layers(method, unified, relu):
    sparse = fg.nn.SparseLinear(12, 20, fg.ErdosRenyi(density=0.5), relu=relu, dtype=torch.float64)
    layer = AsymmetricSparseLinear.like(sparse).set_rule(with_options(METHODS[method], unified=unified), "fc")
    x = torch.randn(9, 12, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, sparse(x))
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, layer.values, layer.bias], dy)
    dense = sparse.dense()
    w = (dense[0] if relu else dense).weight.detach()
    delta = dy * (y > 0) if relu else dy
    dx, dw, db = reference(method, x.detach(), w, delta.detach(), unified)
    torch.testing.assert_close(got[0], dx)
    torch.testing.assert_close(got[1], dw.flatten()[sparse.flat_indices()])
    if method != "union":  # there a neuron without connections counts as unchosen
        torch.testing.assert_close(got[2], db)


def test_sparse_evolving_and_asymmetric_together():
    model = fg.models.mlp([20, 64, 64, 5])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)))
    fg.convert_(model, fg.Asymmetric.topk(8, unified=True))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    evolution = fg.Evolution(model, optimizer, fg.Constant(0.3))
    x, y = torch.randn(64, 20), torch.randint(0, 5, (64,))
    losses = []
    for _ in range(60):
        for _ in range(3):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        evolution.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("per", ["channels", "positions"])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"padding": "same", "dilation": 2},
                                     {"padding": 1, "padding_mode": "circular", "bias": False}])  # fmt: skip
def test_convolutions(per, unified, options):
    conv = nn.Conv2d(4, 6, 3, **options, dtype=torch.float64)
    for config in (fg.Asymmetric.topk(2), fg.Asymmetric.partial(2, 3), fg.Asymmetric.complete(2),
                   fg.Asymmetric.complete(2, "union")):  # fmt: skip
        layer = AsymmetricConv2d.like(conv).set_rule(with_options(config, per=per, unified=unified), "conv")
        x = torch.randn(5, 4, 9, 8, dtype=torch.float64, requires_grad=True)
        y = layer(x)
        torch.testing.assert_close(y, conv(x))
        delta = torch.randn_like(y)
        got = torch.autograd.grad(y, [x, *conv.parameters()], delta)

        def masked(maps, k):
            if per == "channels":
                norms = maps.flatten(2).norm(dim=2)
                return maps * (unify(norms, k) if unified else keep(norms, k))[:, :, None, None]
            flat = maps.flatten(1)
            return (flat * (unify(flat, k) if unified else keep(flat, k))).view_as(maps)

        d = masked(delta, 2)
        xs = x.detach() if config.inputs is None else masked(_padded_like(conv, x.detach()), config.inputs.k)
        if config.weights is not None:
            norms = conv.weight.detach().flatten(2).norm(dim=2)
            dense_reference = copy.deepcopy(conv)
            dense_reference.weight.data *= keep(norms.t().contiguous(), 2).t()[:, :, None, None]
        else:
            dense_reference = conv
        dx = torch.autograd.grad(dense_reference(x), x, d)[0]
        union = config.neurons == "union"
        if union:
            rest = copy.deepcopy(conv)
            rest.weight.data -= dense_reference.weight.data
            dx = torch.autograd.grad(dense_reference(x), x, delta)[0] + torch.autograd.grad(rest(x), x, d)[0]
        bare = copy.deepcopy(conv)
        if config.inputs is not None and (conv.padding_mode != "zeros" or isinstance(conv.padding, str)):
            bare.padding, bare.padding_mode = 0, "zeros"  # what was padded is chosen from
        dw = torch.autograd.grad(bare(xs), bare.weight, d)[0]
        db = d.sum((0, 2, 3))
        if union:
            chosen = dense_reference.weight != 0
            dw = torch.where(chosen, torch.autograd.grad(bare(xs), bare.weight, delta)[0], dw)
            db = torch.where(chosen.flatten(1).any(1), delta.sum((0, 2, 3)), db)
        expected = [dx, dw, db]
        for mine, its in zip(got, expected, strict=False):
            torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_convolutions_under_autocast(dtype):
    plain = nn.Conv2d(3, 6, 3)
    model = nn.Sequential(copy.deepcopy(plain))
    fg.convert_(model, fg.Asymmetric.topk(6))  # all of them: the plain gradients
    x, found = torch.randn(2, 3, 8, 8), []
    for conv in (model, plain):
        with torch.autocast("cpu", dtype):
            y = conv(x)
        assert y.dtype == dtype
        y.float().square().sum().backward()
        found.append([p.grad for p in conv.parameters()])
    torch.testing.assert_close(found[0], found[1], atol=0.5, rtol=0.02)


@pytest.mark.parametrize("unified", [False, True])
def test_a_first_sparse_layer_makes_no_gradient_of_its_input(unified, monkeypatch):
    model = nn.Sequential(nn.Linear(12, 9))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.4)))
    fg.convert_(model, fg.Asymmetric.topk(3, unified=unified))
    x, found = torch.randn(7, 12), []
    for wanted in (True, False):
        if not wanted:
            monkeypatch.setattr("filigree.ops.sparse.spmm_t", None)
            monkeypatch.setattr("filigree.ops.rows.new_matrix", None)
        model.zero_grad()
        model(x.clone().requires_grad_(wanted)).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def _padded_like(conv, x):
    if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        return x
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return nn.functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}]
)
def test_recurrent_networks_are_torchs_where_all_is_kept(kind, options):
    plain = kind(5, 7, **options).double()
    layer = {nn.LSTM: AsymmetricLSTM, nn.GRU: AsymmetricGRU}[kind].like(plain).set_rule(fg.Asymmetric.topk(1000), "rnn")
    for shape in ((4, 3, 5), (4, 5)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        results = []
        for network in (plain, layer):
            y, state = network(x)
            h = state[0] if kind is nn.LSTM else state
            results.append([y, h, *torch.autograd.grad((y * y.detach().cos()).sum(), [x, *network.parameters()])])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
    again = kind(5, 7, **options)
    again.load_state_dict(layer.state_dict())


def test_recurrent_gradients_are_sparse_and_limits_are_named():
    layer = AsymmetricLSTM.like(nn.LSTM(5, 7)).set_rule(fg.Asymmetric.topk(1), "rnn")
    y, _ = layer(torch.randn(1, 1, 5))
    y.sum().backward()
    assert int(layer.weight_ih_l0.grad.any(1).sum()) == 1
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(4, 2, 5), torch.tensor([4, 2]))
    assert layer(packed)[0].data.shape == (6, 7)
    with pytest.raises(ValueError, match="proj_size"):
        fg.convert_(nn.Sequential(nn.LSTM(5, 7, proj_size=3)), fg.Asymmetric.topk(1))


@pytest.mark.parametrize("method", METHODS)
def test_frozen_weights_and_inputs(method):
    """Only the gradients that are wanted."""
    layer = AsymmetricLinear.like(nn.Linear(12, 20)).set_rule(METHODS[method], "fc")
    x, dy = torch.randn(6, 12), torch.randn(6, 20)
    expected = reference(method, x, layer.weight.detach(), dy)
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    mine = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(layer(mine), mine, dy)[0], expected[0], rtol=1e-4, atol=1e-5)
    layer.weight.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(layer(x), layer.weight, dy)[0], expected[1], rtol=1e-4, atol=1e-5)


def test_positions_are_samples():
    layer = AsymmetricLinear.like(nn.Linear(6, 9)).set_rule(fg.Asymmetric.topk(2), "fc")
    x, dy = torch.randn(3, 4, 6), torch.randn(3, 4, 9)
    whole = torch.autograd.grad(layer(x), layer.weight, dy)[0]
    flat = torch.autograd.grad(layer(x.view(12, 6)), layer.weight, dy.view(12, 9))[0]
    torch.testing.assert_close(whole, flat)


# -- keeping ----------------------------------------------------------------------------------------------------------


def test_partial_keeps_only_the_chosen_inputs():
    def kept_bytes(config):
        model = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(512, 512), nn.ReLU())))
        if config is not None:
            fg.convert_(model, config)
        held = {}
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(t):
            if t.untyped_storage().data_ptr() not in parameters:
                held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = model(torch.randn(64, 512))
        y.sum().backward()
        return sum(held.values())

    dense, partial = kept_bytes(None), kept_bytes(fg.Asymmetric.partial(40, 50))
    assert partial < 0.5 * dense, (partial, dense)


def test_saved_models_and_optimizers_made_before():
    model = fg.models.mlp([10, 16, 4])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    fg.convert_(model, fg.Asymmetric.partial(3, 4))
    assert {id(p) for p in model.parameters()} == {id(p) for g in optimizer.param_groups for p in g["params"]}


def test_reload(tmp_path):
    model = fg.models.mlp([10, 16, 4])
    fg.convert_(model, fg.Asymmetric.partial({"*": 3}, 4, ties="random"))
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors")
    assert again[0].config == model[0].config
    x = torch.randn(3, 10)
    assert torch.equal(again(x), model(x))


@pytest.mark.filterwarnings("ignore:.* were never trained")  # it is rewired and saved at once
def test_reload_a_sparse_evolved_asymmetric_model(tmp_path):
    model = fg.models.mlp([20, 64, 64, 5])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)))
    fg.convert_(model, fg.Asymmetric.topk(8, unified=True))
    optimizer = torch.optim.Adam(model.parameters())
    evolution = fg.Evolution(model, optimizer, fg.Constant(0.3))
    model(torch.randn(4, 20)).sum().backward()
    optimizer.step()
    evolution.step()
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors")
    x = torch.randn(3, 20)
    assert torch.equal(again(x), model(x))
    assert type(again[0]) is AsymmetricSparseLinear
    assert again[0].config == model[0].config


def test_auto_chooses_and_records_what_it_chose(tmp_path):
    model = fg.models.mlp([300, 400, 4])
    report = fg.convert_(model, fg.Asymmetric.auto(k=20, k2=100, batch=64))
    assert "dense" in str(report)
    assert "ms" in report.changes[0].note
    fg.save(model, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors")
    assert [again[i].config for i in (0, 2)] == [model[i].config for i in (0, 2)]


def test_other_dtypes_and_autocast():
    layer = AsymmetricLinear.like(nn.Linear(12, 20)).set_rule(fg.Asymmetric.topk(4), "fc")
    x = torch.randn(5, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert int(layer.weight.grad.any(1).sum()) <= 20


def test_functional_call_keeps_the_rule():
    linear = nn.Linear(6, 9)
    owner = AsymmetricLinear.like(linear).set_rule(fg.Asymmetric.topk(2), "fc")
    y = asymmetric_linear(torch.randn(4, 6), linear.weight, None, owner)
    assert y.shape == (4, 9)


# -- related work ------------------------------------------------------------------------------------------------------


def test_column_row_sampling_is_unbiased():
    layer = AsymmetricLinear.like(nn.Linear(12, 20, dtype=torch.float64))
    layer.set_rule(fg.Asymmetric(sensitivity=fg.ColumnRowSampling(5)), "fc")
    x, dy = torch.randn(7, 12, dtype=torch.float64, requires_grad=True), torch.randn(7, 20, dtype=torch.float64)
    exact = torch.autograd.grad(nn.functional.linear(x, layer.weight, layer.bias), [x, layer.weight, layer.bias], dy)
    y, times = layer(x), 4000
    sums = [torch.zeros_like(e) for e in exact]
    for _ in range(times):
        for total, part in zip(sums, torch.autograd.grad(y, [x, layer.weight, layer.bias], dy, retain_graph=True),
                               strict=True):  # fmt: skip
            total += part
    for total, e in zip(sums, exact, strict=True):
        assert (total / times - e).norm() < 0.06 * e.norm()


def test_direct_feedback_alignment():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    fg.convert_(model, fg.Asymmetric(feedback=5))
    plain = nn.Sequential(*(layer.dense() for layer in model if isinstance(layer, AsymmetricLinear)))
    x, y = torch.randn(9, 6), torch.randint(0, 3, (9,))
    nn.functional.cross_entropy(model(x), y).backward()
    nn.functional.cross_entropy(plain(x), y).backward()
    last = plain[2]
    torch.testing.assert_close(model[4].weight.grad, last.weight.grad)  # the output layer learns exactly
    error = torch.softmax(plain(x), 1).sub(nn.functional.one_hot(y, 3)) / 9
    h1, h2 = plain[0](x), plain[:2](x)
    for layer, hidden, inputs, number in ((model[2], h2, h1, 2), (model[0], h1, x, 1)):
        generator = torch.Generator().manual_seed(5 * 1_000_003 + number)
        back = torch.randn(3, hidden.shape[1], generator=generator) * hidden.shape[1] ** -0.5
        delta = (error @ back) * (hidden > 0)
        torch.testing.assert_close(layer.weight.grad, delta.t() @ inputs)
    with pytest.raises(ValueError, match="feedback is for linear layers"):
        fg.convert_(nn.Sequential(nn.Conv2d(1, 2, 3)), fg.Asymmetric(feedback=5))


def test_error_feedback_forgets_nothing():
    p = nn.Parameter(torch.zeros(10))
    optimizer = torch.optim.SGD([p], 1.0)
    feedback = fg.ErrorFeedback(optimizer, fg.TopK(2))
    total = torch.zeros(10)
    for _ in range(6):
        p.grad = torch.randn(10)
        total += p.grad
        optimizer.step()
        assert int(p.grad.count_nonzero()) == 2
    torch.testing.assert_close(-p.data + feedback.memory(p), total)
    with pytest.raises(ValueError, match=r"step\(closure\) makes gradients too late"):
        optimizer.step(lambda: None)
    feedback.remove()
    assert "error_feedback" not in optimizer.state[p]


def test_error_feedback_of_weights_in_channels_last():
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(conv.parameters(), 1.0)
    feedback, before = fg.ErrorFeedback(optimizer, fg.TopK(5)), conv.weight.detach().clone()
    gradient = conv.weight.grad = torch.randn_like(conv.weight)
    optimizer.step()
    assert int(conv.weight.grad.count_nonzero()) == 5
    torch.testing.assert_close(before - conv.weight.detach() + feedback.memory(conv.weight), gradient)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_error_feedback_is_saved_with_the_optimizer_and_follows_rewirings(kind):
    torch.manual_seed(0)
    model = fg.models.mlp([16, 32, 4])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)), where="fc1")
    optimizer = kind(model.parameters(), 0.1, fused=True)
    feedback, evolution = fg.ErrorFeedback(optimizer, fg.TopK(0.1)), fg.Evolution(model, optimizer, 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().sum().backward()
        optimizer.step()
    values = model.fc1.values
    before = dict(zip(model.fc1.flat_indices().tolist(), feedback.memory(values).tolist(), strict=True))
    evolution.step()
    after = dict(zip(model.fc1.flat_indices().tolist(), feedback.memory(values).tolist(), strict=True))
    stayed = set(before) & set(after)
    assert 0 < len(stayed) < len(before)
    assert any(before[place] for place in stayed)
    assert all(after[place] in (before[place], 0.0) for place in stayed)  # one removed and grown again begins at 0
    assert not any(after[place] for place in set(after) - stayed)
    again = kind(model.parameters(), 0.1, fused=True)
    again.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(fg.ErrorFeedback(again, fg.TopK(0.1)).memory(values), feedback.memory(values))


def test_a_refused_network_is_as_it_was():
    model = fg.models.mlp([8, 6, 5, 3])
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="fc2"):
        fg.convert_(model, fg.Asymmetric.topk({"fc1": 2, "fc3": 2}))
    assert [type(module) for module in model.modules()] == kinds
    assert fg.convert.conversions(model) == []


def test_dropout_variants():
    model = nn.Sequential(nn.Linear(6, 1000), nn.ReLU(), nn.Dropout(0.4), nn.Linear(1000, 2))
    gaussian, guided = copy.deepcopy(model), copy.deepcopy(model)
    fg.convert_(gaussian, fg.GaussianDropout())
    noisy = gaussian[2](torch.ones(1000, 1000))
    assert abs(noisy.mean() - 1) < 0.01
    assert abs(noisy.var() - 0.4 / 0.6) < 0.02
    fg.convert_(guided, fg.GuidedDropout("top"))
    layer = guided[2]
    layer.strength.data[:400] = 2
    dropped = layer(torch.ones(3, 1000)) == 0
    assert dropped[:, :400].all()
    assert not dropped[:, 400:].any()
    assert torch.equal(layer.eval()(torch.ones(3, 1000)), layer.strength.expand(3, 1000))
    annealing = fg.DropoutAnnealing(model, epochs=4)
    seen = []
    for _ in range(5):
        seen.append(round(model[2].p, 3))
        annealing.step()
    assert seen == [0.4, 0.3, 0.2, 0.1, 0.0]
    with pytest.raises(ValueError, match="has no dropout"):
        fg.DropoutAnnealing(nn.Linear(2, 2), epochs=3)


def test_sparse_layers_keep_what_modules_have():
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)))
    fg.convert_(model, fg.Asymmetric.topk(3))
    seen = []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    model(torch.randn(4, 20))
    handle.remove()
    model(torch.randn(4, 20))
    assert seen == [1]


@pytest.mark.parametrize("optimizer", ["fused", "by hand", "plain"])
@pytest.mark.parametrize("passes", [1, 2])
def test_the_adjoint_is_that_of_the_present_weights(optimizer, passes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    fg.convert_(model, fg.Asymmetric.complete(1.0))  # all are kept: the gradients are exact
    steps = torch.optim.SGD(model.parameters(), 0.5, fused=optimizer == "fused")
    x = torch.randn(4, 6)
    for _ in range(3):
        model.zero_grad()
        for _ in range(passes):
            model(x).square().mean().backward()
        exact = nn.Sequential(*(layer.dense() for layer in model))
        exact(x).square().mean().backward()
        for layer, dense in zip(model, exact, strict=True):
            torch.testing.assert_close(layer.weight.grad, passes * dense.weight.grad)
        if optimizer == "by hand":
            for parameter in model.parameters():
                parameter.data -= 0.5 * parameter.grad
        else:
            steps.step()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inputs", [False, True])
def test_the_union_of_a_sparse_layer_without_a_bias(bias, inputs):
    model = nn.Sequential(nn.Linear(8, 8, bias=bias))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.5)), where="0")
    fg.convert_(model, fg.Asymmetric.complete(2, "union"))
    x = torch.randn(3, 8, requires_grad=inputs)
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_random_choices_of_16_bits_have_their_chances():
    torch.manual_seed(0)
    x = torch.ones(400_000, dtype=torch.bfloat16)
    assert float((fg.UnscaledDropout(0.001)(x) == 0).float().mean()) < 0.0015
    delta = torch.full((8, 1000), 1e-3, dtype=torch.bfloat16)
    delta[:, 0] = 30.0  # so that each of the others has the chance 7e-5
    sampling, weight = fg.ColumnRowSampling(2), torch.ones(1000, 4, dtype=torch.bfloat16)
    kept = sum(len(sampling.columns(delta, weight).index) - 1 for _ in range(100))
    assert kept < 30  # of 100,000; 390 where the least random number but 0 is 1/256


def test_feedback_needs_the_output_layer_last():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(8, 2), nn.Linear(4, 8)

        def forward(self, x):
            return self.head(self.body(x).relu())

    model = Reversed()
    fg.convert_(model, fg.Asymmetric(feedback=0))
    with pytest.raises(ValueError, match="last one that the model registers, which is 'body'"):
        model(torch.randn(3, 4)).sum().backward()
