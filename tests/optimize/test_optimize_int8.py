"""`optimize_` with a tolerance: layers in int8 where that is fastest, and where they are exact enough."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import filigree as fg
from filigree.laid_out import LaidOut
from filigree.measure.timing import Timing
from filigree.ops.int8 import int8_inputs, int8_product, int8_weight
from filigree.ops.panel_weights import INT8_CODINGS
from filigree.optimize import optimization
from filigree.optimize.graphs import graph_of, plans_of
from filigree.optimize.int8_errors import Int8Errors, int8_error
from filigree.optimize.recurrent import _int8_product, _outputs, _product, layers_of, recurrent_error
from filigree.optimize.tracing import Traced
from filigree.optimize.weights import weight_of


@pytest.fixture
def int8_faster(monkeypatch):
    """The form tried last but one, which is one of int8, counts as the fastest; of a whole model, the last."""

    def times(works, seconds, beyond=0.0):
        last = len(works) - (2 if works and len(works) > 2 else 1)
        return [Timing(1.0 if i == last else 2.0, 0.0, 0.0) for i in range(len(works))]

    monkeypatch.setattr(optimization, "time_interleaved", times)


class Last(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


def networks():
    sparse = nn.Sequential(nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 5))
    fg.convert_(sparse, fg.Sparse(fg.ErdosRenyi(density=0.3), init="keep"))
    integers = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 5))
    fg.compress_(integers, fg.RoundToNearest(bits=8))
    sparse_lstm = Last(nn.LSTM(20, 40, batch_first=True))
    fg.convert_(sparse_lstm, fg.Sparse(fg.ErdosRenyi(density=0.3), init="keep"))
    layer = nn.TransformerEncoderLayer(32, 2, 48, activation="gelu", batch_first=True)
    return {
        "sparse": (sparse, (64,)),
        "integers": (integers, (64,)),
        "tokens": (nn.Sequential(nn.Linear(64, 80), nn.GELU(), nn.Linear(80, 7)), (9, 64)),
        "convolutions": (
            nn.Sequential(nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.ReLU(), nn.MaxPool2d(2),
                          nn.Conv2d(9, 20, (3, 1), stride=2), nn.PReLU(20), nn.Flatten(), nn.Linear(20 * 3 * 4, 6)),
            (3, 15, 14),
        ),
        "1-D": (nn.Sequential(nn.Conv1d(5, 18, 7, padding=3), nn.ReLU(), nn.Conv1d(18, 3, 1)), (5, 40)),
        "lstm": (Last(nn.LSTM(20, 40, 2, batch_first=True)), (9, 20)),
        "gru": (Last(nn.GRU(20, 70, bidirectional=True, batch_first=True)), (9, 20)),
        "sparse lstm": (sparse_lstm, (9, 20)),
        "encoder": (nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (7, 32)),
    }  # fmt: skip


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("batch", [1, 12])
def test_every_form_in_int8_is_near_the_network(isa, name, batch):
    torch.manual_seed(0)
    model, shape = networks()[name]
    model.eval()
    x = torch.randn(batch, *shape)
    with torch.no_grad():
        traced = Traced(model, [x])
        plans = plans_of(traced, set(), Int8Errors(traced, 0.5))
        drafts = [draft for plan in plans for draft in plan.drafts if draft.layer is not None]
        forms = sorted({form for draft in drafts for form in draft.forms} & set(INT8_CODINGS))
        assert forms
        expected = model(x)
        for form in forms:
            for draft in drafts:
                draft.form = form if form in draft.forms else "int8"
                assert 0 < draft.error < 0.05
            y = graph_of(traced, plans, chunk=4)(x)
            assert 0 < float((y - expected).norm() / expected.norm()) < 0.05
            alone = torch.cat([graph_of(traced, plans, chunk=1)(sample[None]) for sample in x])
            torch.testing.assert_close(alone, y, rtol=1e-4, atol=1e-5)  # scales depend on no other sample


def test_a_linear_layer_is_the_product_of_whole_numbers(isa, int8_faster):
    torch.manual_seed(0)
    layer, x = nn.Linear(50, 30), torch.randn(4, 6, 50)
    model = nn.Sequential(layer).eval()
    report = fg.optimize_(model, x, tolerance=0.05)
    assert report.layers[0].form == "int8"
    integers, scale = int8_weight(layer.weight.detach())
    with torch.no_grad():
        y = model(x)
    expected = int8_product(x.flatten(0, 1), integers) * scale + layer.bias.detach()
    torch.testing.assert_close(y, expected.view_as(y), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_error_of_a_recurrent_layer_is_that_of_its_outputs(kind):
    torch.manual_seed(0)
    rnn, x = kind(6, 20, 2, bidirectional=True, batch_first=True).eval(), torch.randn(5, 9, 6)
    layers = layers_of(rnn)
    with torch.no_grad():
        expected = rnn(x)[0]
        torch.testing.assert_close(_outputs(layers, kind is nn.LSTM, x, _product), expected)
        ours = _outputs(layers, kind is nn.LSTM, x, _int8_product)
    error = float((ours - expected).norm() / expected.norm())
    assert recurrent_error(layers, kind is nn.LSTM, x) == pytest.approx(error, rel=1e-3)
    assert 1e-4 < error < 0.02


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_products_of_a_recurrent_layer_are_rounded_one_by_one(kind):
    """One number that is far larger than the others spoils the first product alone, which stays one of floats."""
    torch.manual_seed(0)
    model, x = Last(kind(12, 32, 2, batch_first=True)).eval(), torch.randn(3, 7, 12)
    with torch.no_grad():
        model.rnn.weight_ih_l0[:, 0] = 0.0
    x[..., 0] = 1000.0
    layers = layers_of(model.rnn)
    of_part = {
        f"{side}_l{number}": recurrent_error(layers, kind is nn.LSTM, x, getattr(layers[number][0], which))
        for number in range(2)
        for side, which in (("ih", "inputs"), ("hh", "states"))
    }
    first = of_part.pop("ih_l0")
    assert first > 5 * max(of_part.values())
    traced = Traced(model, [x])
    plans = plans_of(traced, set(), Int8Errors(traced, first / 2))
    drafts = {draft.part: draft for draft in plans[0].drafts if draft.part}
    assert {part for part, draft in drafts.items() if "int8" in draft.forms} == set(of_part)
    assert {part: draft.error for part, draft in drafts.items() if draft.error} == pytest.approx(of_part)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_threads_share_the_channels_of_a_recurrent_layer_and_change_no_bit(isa, kind):
    torch.manual_seed(0)
    model, x = Last(kind(12, 100, batch_first=True)).eval(), torch.randn(3, 7, 12)
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3), init="keep"))
    threads = torch.get_num_threads()
    with torch.no_grad():
        traced = Traced(model, [x])
        plans = plans_of(traced, set(), Int8Errors(traced, 0.5))
        (states,) = (draft for draft in plans[0].drafts if draft.part.startswith("hh"))
        assert {"floats", "rows", "windows", "int8"} <= set(states.forms)
        states.step = replace(states.step, work=1 << 20)
        for form in states.forms:
            states.form = form
            graph = graph_of(traced, plans, chunk=4)
            try:
                results = []
                for count in (1, 2, 3):
                    torch.set_num_threads(count)
                    results.append(graph(x[:1]))
            finally:
                torch.set_num_threads(threads)
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])


def test_without_a_tolerance_nothing_is_rounded(int8_faster):
    model = nn.Sequential(nn.Linear(50, 30)).eval()
    report = fg.optimize_(model, torch.randn(4, 50))
    assert not set(report.layers[0].milliseconds) & set(INT8_CODINGS)
    assert report.layers[0].error == 0


def test_the_report_says_the_error_of_each_layer(int8_faster):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 8)).eval(), torch.randn(4, 50)
    expected = model(x)
    report = fg.optimize_(model, x, tolerance=0.05)
    dense, weight = weight_of(model[0])
    assert report.layers[0].error == pytest.approx(int8_error(dense, weight, x))
    assert f"{report.layers[0].error:.1e}" in str(report)
    with torch.no_grad():
        assert report.difference == pytest.approx(float((model(x) - expected).abs().max() / expected.abs().max()))
    assert 1e-4 < report.difference <= 0.05


def test_a_layer_whose_error_is_beyond_the_tolerance_stays_float(int8_faster):
    """Inputs of which one is a thousand times as large as the others, and is not read."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 8)).eval(), torch.randn(4, 50)
    with torch.no_grad():
        model[0].weight[:, 7] = 0
    x[:, 7] = 1000.0
    report = fg.optimize_(model, x, tolerance=0.05)
    assert "int8" not in report.layers[0].milliseconds
    assert report.layers[1].form == "int8"


def test_the_whole_model_is_as_exact_as_asked(int8_faster):
    """Layers that are each exact enough, whose errors add up: those with the largest ones become floats."""
    torch.manual_seed(0)
    layers = [module for _ in range(12) for module in (nn.Linear(40, 40), nn.Tanh())]
    for layer in layers[::2]:
        nn.init.orthogonal_(layer.weight, 1.5)
    model, x = nn.Sequential(*layers).eval(), torch.randn(6, 40)
    report = fg.optimize_(model, x, tolerance=0.012)
    assert report.difference <= 0.012
    forms = [layer.form for layer in report.layers]
    assert "floats" in forms


def test_layers_stay_in_floats_by_their_names(int8_faster):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(20, 40, batch_first=True), nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 6))

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Network().eval(), torch.randn(1, 9, 20)

    def rounded(**options):
        return {layer.name for layer in fg.optimize_(model, x, tolerance=0.5, **options).layers if layer.error}

    products, layers = {"rnn.ih_l0", "rnn.hh_l0"}, {"head.0", "head.1"}
    assert rounded() == products | layers
    assert rounded(floats="rnn.ih_l0") == {"rnn.hh_l0"} | layers
    assert rounded(floats=["rnn", "head.1"]) == {"head.0"}
    assert rounded(floats=["head"]) == products
    assert rounded(floats=["*.1", "*.hh_*"]) == {"rnn.ih_l0", "head.0"}
    before = model(x)
    for glob in ("haed", "head.7", "rnn.ih_l1", "rnn.weight_ih_l0"):
        line = rf"^optimize_: floats='{glob}' matches no layer that can be in int8\. Those are: rnn\.ih_l0, rnn\.hh_l0,"
        with pytest.raises(ValueError, match=line):
            rounded(floats=["head.0", glob])
    assert torch.equal(model(x), before)
    encoder = nn.TransformerEncoderLayer(32, 2, 48, batch_first=True).eval()
    with pytest.raises(
        ValueError, match=r"self_attn\.out_proj' matches no layer that can be in int8\. .*self_attn\.out"
    ):
        fg.optimize_(encoder, torch.randn(2, 7, 32), tolerance=0.5, floats="self_attn.out_proj")


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_a_tolerance_that_is_none(tolerance):
    with pytest.raises(ValueError, match=r"optimize_: tolerance must be between 0 and 1\. Got"):
        fg.optimize_(nn.Linear(3, 2).eval(), torch.randn(1, 3), tolerance=tolerance)


def test_inputs_that_are_not_finite_stay_so(int8_faster):
    model, x = nn.Sequential(nn.Linear(20, 10)).eval(), torch.randn(3, 20)
    fg.optimize_(model, x, tolerance=0.05)
    bad = x.clone()
    bad[1, 3] = float("nan")
    with torch.no_grad():
        y = model(bad)
        assert y[1].isnan().all()
        assert torch.equal(y[[0, 2]], model(x)[[0, 2]])


# -- transformers ------------------------------------------------------------------------------------------------------


def test_an_encoder_is_one_call_and_masks_take_the_original(faster):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 48, activation="gelu", batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    plain, x = copy.deepcopy(model), torch.randn(2, 7, 32)
    report = fg.optimize_(model, x)
    assert [each.name for each in report.layers[:6]] == [
        f"layers.0.{name}"
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.out", "linear1", "linear2")
    ]
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[:, 5:] = True
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
        masked = plain(x, src_key_padding_mask=padding)
        torch.testing.assert_close(model(x, src_key_padding_mask=padding), masked)
    assert model.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        model.layers[0].self_attn.in_proj_weight.mul_(2)
    with pytest.warns(UserWarning, match="have changed since"), torch.no_grad():
        model(x)


@pytest.mark.parametrize("kind", ["DistilBert", "Bert"])
@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_pretrained_kinds_of_transformers(kind, tolerance, faster):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {
        "DistilBert": {"vocab_size": 50, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
        "Bert": {
            "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
    }[kind]  # fmt: skip
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**small)).eval()
    plain, tokens = copy.deepcopy(model), torch.randint(50, (2, 11))
    report = fg.optimize_(model, tokens, tolerance=tolerance)
    products = [layer for layer in report.layers if layer.form != "as it was"]
    assert len(products) >= 12
    layers = {"Bert": "encoder.layer", "DistilBert": "transformer.layer"}[kind]
    laid_out = {name for name, module in model.named_modules() if isinstance(module, LaidOut)}
    assert laid_out >= {f"{layers}.0", f"{layers}.1"}  # each as a whole
    with torch.no_grad():
        expected, y = plain(tokens).last_hidden_state, model(tokens).last_hidden_state
        assert torch.equal(model(input_ids=tokens).last_hidden_state, y)
    assert float((y - expected).abs().max() / expected.abs().max()) <= max(tolerance, 1e-4)


def test_functions_of_activations_are_fused():
    class Fed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 20), nn.Linear(20, 6)

        def forward(self, x):
            return x + self.b(F.silu(self.a(F.gelu(x, approximate="tanh"))))

    model, x = Fed().eval(), torch.randn(3, 5, 6)
    with torch.no_grad():
        traced = Traced(model, [x])
        graph = graph_of(traced, plans_of(traced, set(), Int8Errors(traced, 0)), 1)
        assert sum(node.op == "call_module" for node in graph.graph.nodes) == 1
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_inputs_in_bytes_are_those_of_each_vector():
    x = torch.randn(3, 4)
    assert torch.equal(int8_inputs(x).scale[1:], int8_inputs(x[1:]).scale)
