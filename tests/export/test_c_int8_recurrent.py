"""LSTM and GRU in C programs of 8-bit integers: bit for bit what the module of torch says, and near the floats."""

import numpy as np
import pytest
import torch
from test_c_int8 import MAIN, run
from test_c_properties import SANITIZE, Series, needs_compiler
from torch import nn

import filigree as fg
from filigree.export import export
from filigree.export.c.int8_network import Int8Network
from filigree.export.c.int8_recurrent import TANH, _sigmoid, _tanh
from filigree.export.device.emulator import missing_tools

STEPS = """
#include <stdio.h>
#include "m.h"
int main(void) {
    static float x[M_INPUTS / M_MOMENTS]; static int8_t q[M_INPUTS / M_MOMENTS], y[M_OUTPUTS];
    for (int i = 0; fread(x, sizeof x, 1, stdin) == 1; ++i) {
        if (i % M_MOMENTS == 0) { m_reset(); }
        m_quantize_step(x, q);
        m_step(q, y);
        fwrite(y, sizeof y, 1, stdout);
    }
    return 0;
}
"""


def network(kind, layers=2, spread=1.0, density=1.0):
    before, after = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Sequential(nn.Linear(6, 2))
    model = Series(before, kind(4, 6, layers, batch_first=True, bias=kind is nn.GRU), after, adds=False).eval()
    for parameter in model.recurrent.parameters():
        nn.init.uniform_(parameter, -spread, spread)
        parameter.data *= torch.rand_like(parameter) < density
    return model


@needs_compiler
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_steps_remember_what_came_before(tmp_path, kind):
    model, x = network(kind), torch.randn(50, 7, 3)
    report = export(model, tmp_path / "m.c", x, activations="int8")
    assert "bit for bit: largest difference 0 of" in report.verified
    assert {"tanh, sigmoid", f"{kind.__name__.lower()} 4 -> 6", "last moment"} <= {each.what for each in report.layers}
    reference = Int8Network(model, x)
    q = reference.stored(x)
    expected = torch.stack([reference.integers(q[:, : moment + 1]) for moment in range(7)], 1)
    out = np.frombuffer(run(tmp_path, STEPS, x.numpy().tobytes(), *SANITIZE), np.int8).reshape(50, 7, 2)
    assert np.array_equal(out, expected.numpy())
    hard = torch.randint(-128, 128, (30, 7, 3))
    out = np.frombuffer(run(tmp_path, MAIN, hard.numpy().astype(np.int8).tobytes(), *SANITIZE), np.int8)
    assert np.array_equal(out, reference.integers(hard).numpy().reshape(-1))
    with torch.no_grad():
        floats = torch.stack([model(x[:, : moment + 1]) for moment in range(7)], 1)
    assert (reference.after.numbers(expected) - floats).abs().mean() < 0.02 * floats.std()
    source = (tmp_path / "m.c").read_text()
    assert "float" not in source.split("m_quantize")[0]
    assert "<math.h>" not in source


@needs_compiler
def test_few_weights_take_their_smallest_form(tmp_path):
    x = torch.randn(50, 7, 3)
    dense = export(network(nn.LSTM), tmp_path / "m.c", x, activations="int8")
    sparse = export(network(nn.LSTM, density=0.1), tmp_path / "m.c", x, activations="int8")
    forms = {each.form for each in sparse.layers if each.what.startswith("lstm")}
    assert "integers of 8 bits" not in forms
    assert sparse.data_bytes < dense.data_bytes
    sizes = {each.what: each.bytes for each in dense.layers if each.name == "recurrent.0"}
    assert sizes == {"lstm 4 -> 6": 24 * (4 + 6 + 2 * 9)}
    # two buffers by turns, four sums a unit; of each layer the state, and cells of 16 bits
    assert 0 <= dense.ram_bytes - (6 + 6 + 4 * 4 * 6 + 2 * (6 + 2 * 6)) < 32  # between them, to align


@pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_as_on_a_device(tmp_path, kind):
    x = torch.randn(50, 7, 3)
    report = export(network(kind), tmp_path / "m.c", x, activations="int8", target="cortex-m4")
    assert "bit for bit: largest difference from torch 0" in report.verified
    floats = export(network(kind), tmp_path / "f.c", x, target="cortex-m4")
    assert report.device.flash < 0.9 * floats.device.flash
    assert report.device.memory < 0.45 * floats.device.memory


def test_tanh_and_sigmoid_are_near():
    v = torch.arange(-(2**19), 2**19, 7)
    assert (_tanh(v) / 2**15 - (v / 2**15).tanh()).abs().max() < 1.3e-4
    assert (_sigmoid(v) / 2**16 - (v / 2**14).sigmoid()).abs().max() < 1.3e-4 / 2
    assert torch.equal(_tanh(-v), -_tanh(v))
    assert (_tanh(v.sort().values).diff() >= 0).all()
    assert _tanh(torch.tensor([-(2**30), 0, 2**30])).tolist() == [-32767, 0, 32767]
    assert TANH.nbytes == 514


def test_small_steps_of_a_gru_are_not_lost():
    """Each step goes a 400th of the way: far less than a unit of 8 bits, which is what the next step reads."""
    model = network(nn.GRU, layers=1, spread=0.0)
    model.recurrent.bias_ih_l0.data[6:12] = 6.0
    nn.init.normal_(model.recurrent.weight_ih_l0[12:])
    x = torch.randn(40, 1, 3).expand(40, 300, 3)
    with torch.no_grad():
        expected = model(x)
    assert (Int8Network(model, x)(x) - expected).abs().mean() < 0.02 * expected.std()


def test_before_a_sum_and_a_softmax_at_each_time_step():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.lstm, self.fc = (
                fg.nn.Standardize(0.5, 2.0),
                nn.LSTM(4, 4, batch_first=True),
                nn.Linear(4, 3),
            )

        def forward(self, x):
            x = self.norm(x)
            y = x + x.softmax(-1)
            return self.fc((y + self.lstm(y)[0])[:, -1])

    model, x = Mixed().eval(), torch.randn(200, 5, 4) + 1
    with torch.no_grad():
        expected = model(x)
    assert (Int8Network(model, x)(x) - expected).abs().max() < 0.05 * expected.std()


@needs_compiler
@pytest.mark.long("trains two networks")
@pytest.mark.parametrize(("kind", "most"), [(nn.LSTM, 0.01), (nn.GRU, 0.01)])
def test_digits_row_by_row_are_read_as_well_as_in_floats(tmp_path, kind, most):
    """Images of 8 x 8 as series of their rows: the program's accuracy is within a percent of the floats'."""
    data = fg.data.load("digits")
    model = Series(nn.Identity(), kind(8, 24, batch_first=True), nn.Linear(24, 10), adds=False)
    train, test = data.train.x.view(-1, 8, 8), data.test.x.view(-1, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(8):
        for index in torch.randperm(len(train)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train[index]), data.train.y[index]).backward()
            optimizer.step()
    report = export(model.eval(), tmp_path / "m.c", train[:512], activations="int8")
    reference = Int8Network(model, train[:512])
    out = run(tmp_path, MAIN, reference.stored(test).numpy().astype(np.int8).tobytes())
    predicted = np.frombuffer(out, np.int8).reshape(-1, 10).argmax(1)
    with torch.no_grad():
        floats = (model(test).argmax(1) == data.test.y).double().mean()
    assert floats > 0.85
    assert abs((predicted == data.test.y.numpy()).mean() - float(floats)) <= most
    assert report.data_bytes < 0.5 * export(model, tmp_path / "f.c", train[:512]).data_bytes
