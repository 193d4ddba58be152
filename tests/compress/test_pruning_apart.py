"""Heads of torch's attention, units of LSTM and GRU, and layers whose weights something computes."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import filigree as fg
from filigree.nn import LayeredAttention
from zoo import Wired

PLAIN = fg.MagnitudePruning(keep=0.5, compensate=None, measure=False)


def transformer():
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Wired(
        lambda s, x: s.head(s.encoder(s.embed(x))), embed=nn.Linear(5, 16), encoder=encoder, head=nn.Linear(16, 3)
    )


def recurrent(kind=nn.LSTM, layers=2, bidirectional=True, last=False, bias=True):
    rnn = kind(6, 12, layers, batch_first=True, bidirectional=bidirectional, bias=bias)

    def run(s, x):
        y, states = s.rnn(s.embed(x))
        final = states[0] if isinstance(states, tuple) else states
        return s.head(final[-1] if last else y)

    return Wired(run, embed=nn.Linear(5, 6), rnn=rnn, head=nn.Linear(12 if last or not bidirectional else 24, 3))


NETWORKS = {
    "attention": transformer, "lstm": recurrent, "gru": lambda: recurrent(nn.GRU, 1, False),
    "last state": lambda: recurrent(nn.GRU, 3, True, True), "no bias": lambda: recurrent(bias=False),
}  # fmt: skip


def built(name):
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def data():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(60, 7, 3, generator=generator) @ torch.randn(3, 5, generator=generator)).tanh()


def error(model, x, y):
    with torch.no_grad():
        return float((model(x) - y).norm() / (y - y.mean(0)).norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_the_units_refitted_saved_and_loaded(name, tmp_path):
    model, x = built(name), data()
    with torch.no_grad():
        y = model(x)
    plain, small = copy.deepcopy(model), copy.deepcopy(model)
    fg.compress_(plain, PLAIN, x)
    report = fg.compress_(small, fg.MagnitudePruning(keep=0.5, measure=False), x)
    share = 0.6 if name == "attention" else 0.5  # half of the residual stream of an untrained network goes, too
    assert error(small, x, y) < share * error(plain, x, y)
    if name == "attention":
        attention = small.encoder.layers[0].self_attn
        assert isinstance(attention, LayeredAttention)
        assert (attention.num_heads, attention.head_dim, attention.embed_dim) == (2, 4, 8)
    else:
        assert type(small.rnn) is type(model.rnn)
        assert (small.rnn.hidden_size, small.rnn.input_size) == (6, 3)
        (line,) = [change for change in report.changes if change.name == "rnn"]
        assert line.parameters == tuple(sum(p.numel() for p in m.rnn.parameters()) for m in (model, small))
    fg.save(small, tmp_path / "m.safetensors")
    again = fg.load(tmp_path / "m.safetensors", into=built(name)).eval()
    assert torch.equal(again(x), small(x))


def test_the_smaller_lstm_is_the_masked_one():
    model, x = built("lstm"), data()
    small = copy.deepcopy(model)
    fg.compress_(small, PLAIN, x, where=["rnn"])
    gone = torch.ones(12, dtype=torch.bool)
    gone[small.rnn.kept_outputs] = False
    assert int(gone.sum()) == 6
    with torch.no_grad():
        for name, weight in model.rnn.named_parameters():
            if "weight_hh" in name:
                weight[:, gone] = 0
            elif "weight_ih_l1" in name:
                weight[:, gone.repeat(2)] = 0
        model.head.weight[:, gone.repeat(2)] = 0
    torch.testing.assert_close(small(x), model(x))


def test_heads_that_are_not_named_stay_in_torch_s_attention():
    model, x = built("attention"), data()
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    fg.compress_(model, PLAIN, x, where=["*.linear1"])
    assert [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)] == attentions
    assert model.encoder.layers[0].linear1.out_features == 12


def test_heads_are_named_by_the_attention():
    model, x = built("attention"), data()
    fg.compress_(model, PLAIN, x, where=["*.layers.0.self_attn"])
    first, second = (layer.self_attn for layer in model.encoder.layers)
    assert (first.num_heads, first.q.out_features, first.out.in_features, first.embed_dim) == (2, 8, 8, 16)
    assert type(second) is nn.MultiheadAttention
    with pytest.raises(ValueError, match=r"of one width\. Got 16, 8 and 16\."):
        first.dense()


def test_what_fails_leaves_the_model_as_it_was():
    model, x = built("lstm"), data()
    before, rnn = copy.deepcopy(model.state_dict()), model.rnn
    with pytest.raises(ValueError, match="above"):
        fg.compress_(model, fg.SubsetPruning(keep=fg.Budget(parameters=2)), x)
    assert model.rnn is rnn
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


NORMS = {
    "weight norm": nn.utils.parametrizations.weight_norm, "spectral norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal, "by hook": nn.utils.spectral_norm,
}  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
def test_computed_weights_are_folded_first(norm, tmp_path):
    def make():
        torch.manual_seed(0)
        layers = fg.models.mlp([6, 20, 20, 20, 3])
        for number in (2, 6):
            NORMS[norm](layers[number])
        return nn.Sequential(*layers).eval()

    model, x = make(), torch.randn(50, 6)
    with torch.no_grad():
        y = model(x)
    untouched = copy.deepcopy(model)
    report = fg.compress_(model, fg.SubsetPruning(keep=0.5, measure=False), x, where=["0"])
    assert [model[i].weight.shape for i in (0, 2)] == [(10, 6), (20, 10)]
    assert type(model[2]) is nn.Linear
    assert "its weight no longer computed, but folded" in str(report)
    assert type(model[6]) is type(untouched[6])  # what pruning leaves alone is computed still
    assert error(model, x, y) < 0.5
    fg.save(model, tmp_path / "m.safetensors")
    assert torch.equal(fg.load(tmp_path / "m.safetensors", into=make())(x), model(x))
    torch.testing.assert_close(untouched(x), y)  # its class is whole


def test_networks_that_pad_by_themselves():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 8, 5), nn.Conv1d(8, 3, 5)

        def forward(self, x):
            return self.b(F.pad(torch.relu(self.a(F.pad(x, (2, 2)))), (1, 3)))

    torch.manual_seed(0)
    model = Padded()
    fg.compress_(model, PLAIN, torch.randn(9, 2, 12))
    assert (model.a.out_channels, model.b.in_channels) == (4, 4)


def test_torch_s_compiler_is_not_loaded():
    code = (
        "import sys, torch, filigree as fg; from torch import nn;"
        "m = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2));"
        "fg.compress_(m, fg.MagnitudePruning(), torch.randn(9, 4)); print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
