"""One-shot sparsity of recurrent layers and cells: what they read at each step, both matrices together, files."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import filigree as fg
from filigree.compress.one_shot import products, surgery
from filigree.compress.one_shot.recurrence import read
from filigree.convert import inference_context

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch says that it takes its slower way

KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN, "projected": lambda *a, **k: nn.LSTM(*a, proj_size=3, **k)}


def step(module, gates, of_state, states):
    """What a cell makes of its products with the input and with the state, as torch's documentation has it."""
    if isinstance(module, nn.LSTM):
        i, f, g, o = (gates + of_state).chunk(4, -1)
        c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
        return [o.sigmoid() * c.tanh(), c]
    if isinstance(module, nn.GRU):
        (r, z, n), (of_r, of_z, of_n) = gates.chunk(3, -1), of_state.chunk(3, -1)
        update = (z + of_z).sigmoid()
        return [(1 - update) * (n + (r + of_r).sigmoid() * of_n).tanh() + update * states[0]]
    return [(gates + of_state).tanh()]


def loop(module, x, hx):
    """The module as a loop; of each layer and direction what it reads, sorted as rows; x `(time, batch, in)`."""
    seen, count = {}, 2 if module.bidirectional else 1
    given, inputs, sides = list(hx) if isinstance(module, nn.LSTM) else [hx], x, []
    for number in range(module.num_layers * count):
        suffix = f"_l{number // count}" + ("_reverse" if number % count else "")
        weights = [getattr(module, f"{name}{suffix}") for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
        if number and number % count == 0:
            inputs, sides = torch.cat(sides, -1), []
        states, out, rows = [part[number] for part in given], [None] * len(x), []
        for time in range(len(x))[:: -1 if number % count else 1]:
            before = states[0]
            states = step(module, inputs[time] @ weights[0].T + weights[1], before @ weights[2].T + weights[3], states)
            full = states[0]
            if getattr(module, "proj_size", 0):
                states[0] = full @ getattr(module, f"weight_hr{suffix}").T
            out[time] = states[0]
            rows.append(torch.cat([inputs[time], before, full], 1))
        sides.append(torch.stack(out))
        seen[suffix] = torch.cat(rows)
    return torch.cat(sides, -1), seen


def same_rows(a, b):
    assert a.shape == b.shape
    keys = torch.linspace(1, 2, a.shape[1], dtype=a.dtype).sin()
    torch.testing.assert_close(a[(a @ keys).argsort()], b[(b @ keys).argsort()])


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_each_layer_and_direction_reads(kind, both):
    torch.manual_seed(0)
    module = KINDS[kind](5, 4, 2, bidirectional=both).double()
    x, layers = torch.randn(6, 3, 5, dtype=torch.float64), 4 if both else 2
    h, c = (torch.randn(layers, 3, size, dtype=torch.float64) for size in (getattr(module, "proj_size", 0) or 4, 4))
    hx = (h, c) if isinstance(module, nn.LSTM) else h
    y, seen = loop(module, x, hx)
    torch.testing.assert_close(y, module(x, hx)[0])
    for suffix, rows in seen.items():
        at_once = read(module, suffix, ((x,), {"hx": hx}))
        last = getattr(at_once, "hr", None)
        parts = [at_once.ih, at_once.hh] + ([last] if last is not None else [])
        same_rows(torch.cat(parts, 1), rows if last is not None else rows[:, : -module.hidden_size])
        lengths = torch.tensor([2, 6, 4])
        packed = read(module, suffix, ((pack_padded_sequence(x, lengths, enforce_sorted=False), hx), {}))
        alone = [
            read(module, suffix, ((x[:length, i], (h[:, i], c[:, i]) if isinstance(hx, tuple) else h[:, i]), {}))
            for i, length in enumerate(lengths.tolist())
        ]
        same_rows(torch.cat(packed[:2], 1), torch.cat([torch.cat(each[:2], 1) for each in alone]))
    before = read(module, "_l1", ((x, hx), {}))
    module.batch_first = True
    assert torch.equal(read(module, "_l1", ((x.transpose(0, 1), hx), {})).ih, before.ih)


class Network(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.head = rnn, nn.LazyLinear(3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def series(count, seed):
    """Channels that are mixed, and remember: neighbours in time and across channels are correlated."""
    x = torch.randn(count, 10, 6, generator=torch.Generator().manual_seed(seed))
    x = x @ (torch.eye(6) + 0.6 * torch.ones(6, 6))
    for time in range(1, 10):
        x[:, time] = 0.7 * x[:, time - 1] + 0.7 * x[:, time]
    return x


def network(kind, **options):
    torch.manual_seed(0)
    model = Network(KINDS[kind](6, 12, batch_first=True, **options)).eval()
    model(series(2, 0))
    for parameter in model.rnn.parameters():
        parameter.data *= 1.5
    return model


def outputs(model, x):
    with inference_context(model):
        return model(x)


CASES = {
    "LSTM": ("LSTM", {}), "LSTM, bidirectional": ("LSTM", {"bidirectional": True, "num_layers": 2}),
    "GRU": ("GRU", {}), "RNN": ("RNN", {}), "projected": ("projected", {"bias": False}),
}  # fmt: skip


LONG = pytest.mark.long("two layers in two directions, four times")


@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG if "bidir" in name else ()) for name in CASES])
def test_better_than_magnitude_and_wanda_and_the_same_from_a_file(name, tmp_path):
    kind, options = CASES[name]
    model, x, other = network(kind, **options), series(60, 1), series(60, 2)
    expected, error = outputs(model, other), {}
    for label, config in {
        "obs": fg.OneShot(0.5), "magnitude": fg.OneShot(0.5, method="magnitude", compensate=None),
        "wanda": fg.OneShot(0.5, method="wanda", compensate=None), "bits": fg.OneShot(0.5, bits=5),
    }.items():  # fmt: skip
        pruned = copy.deepcopy(model)
        fg.compress_(pruned, config, x)
        y = outputs(pruned, other)
        error[label] = float((y - expected).norm() / (expected - expected.mean((0, 1))).norm())
        if label in ("obs", "bits"):
            fg.save(pruned, tmp_path / "m.safetensors")
            again = fg.load(tmp_path / "m.safetensors", into=network(kind, **options))
            assert torch.equal(outputs(again, other), y)
    assert error["obs"] < 0.7 * min(error["magnitude"], error["wanda"])
    assert error["bits"] < 0.8 * min(error["magnitude"], error["wanda"])


def test_input_and_state_make_up_for_one_another():
    """One matrix [W_ih W_hh] is better than each on its own; half of all its weights go."""
    model, x, other, error = network("LSTM"), series(100, 1), series(60, 2), {}
    with pytest.MonkeyPatch.context() as patched:
        for apart in (False, True):
            patched.setattr(products, "WIDEST", 1 if apart else 4096)
            pruned = copy.deepcopy(model)
            fg.compress_(pruned, fg.OneShot(0.5), x)
            error[apart] = float((outputs(pruned, other) - outputs(model, other)).norm())
    assert error[False] < 0.95 * error[True]
    fg.compress_(model, fg.OneShot(0.5), x)
    kept = sum(product.nnz for product in model.rnn.products.values())
    assert kept == round(0.5 * 48 * (6 + 12))


def test_patterns_do_not_reach_from_the_input_into_the_state():
    model = network("LSTM")
    report = str(fg.compress_(model, fg.OneShot(pattern="2:4"), series(40, 1)))
    assert "left whole: 4 does not divide its 6 inputs" in report  # those of x; the state has 12
    kept = model.rnn.products["hh_l0"].dense().weight != 0
    assert bool((kept.unflatten(1, (-1, 4)).sum(2) == 2).all())
    for name, columns in (("GRU", 3), ("LSTM", 4)):  # 4 does not divide 6: blocks are cut where the input ends
        model = network(name)
        fg.compress_(model, fg.OneShot(0.5, pattern=(1, columns)), series(40, 1))
        kept = model.rnn.products["hh_l0"].dense().weight != 0
        assert set(kept.unflatten(1, (-1, columns)).sum(2).flatten().tolist()) == {0, columns}


def test_allocation_leaves_a_recurrent_layer_as_it_was_meanwhile():
    model, x = network("projected"), series(40, 1)
    pruned = copy.deepcopy(model)
    fg.compress_(pruned, fg.OneShot(0.6, allocation="error"), x)
    again = fg.compress_(copy.deepcopy(model), fg.OneShot(0.6, allocation="error"), x)
    assert "stays dense, with zeros" in str(again)
    rnn = pruned.rnn
    weights = [parameter for name, parameter in rnn.named_parameters() if "weight" in name]
    kept = sum(int((weight != 0).sum()) for weight in weights) + pruned.head.nnz
    assert kept == pytest.approx(0.4 * (sum(weight.numel() for weight in weights) + 9), rel=0.05)
    states = torch.zeros(1, len(x), 3), torch.zeros(1, len(x), 12)
    torch.testing.assert_close(rnn(x)[0].transpose(0, 1), loop(rnn, x.transpose(0, 1), states)[0])  # what torch caches


def test_packed_sequences_are_batches():
    """Alone, in a list, or with labels; a model that takes them is run on them, not on their rows."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[1][-1])

    torch.manual_seed(0)
    model, lengths = Last(), [5, 2, 4, 1] * 4
    x = pack_padded_sequence(torch.randn(5, 16, 4), lengths, enforce_sorted=False)
    states = []
    for data in (x, [x], [(x, torch.zeros(16))]):
        own = copy.deepcopy(model)
        fg.compress_(own, fg.OneShot(0.5), data)
        assert own(x).shape == (16, 2)
        states.append(own(x))
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


@pytest.mark.parametrize("exact", [True, False])
def test_each_row_loses_as_many(exact, monkeypatch):
    """Rows of small pre-activations, whose weights cost little, are not emptied."""
    if not exact:
        monkeypatch.setattr(surgery, "EXACT", 0)
    model = network("LSTM")
    with torch.no_grad():
        for parameter in model.rnn.parameters():
            parameter[::3] *= 0.1
    fg.compress_(model, fg.OneShot(0.5), series(60, 1))
    kept = sum((model.rnn.products[f"{side}_l0"].dense().weight != 0).sum(1) for side in ("ih", "hh"))
    assert kept.tolist() == [9] * 48
