"""Programs in C: what they compute, how their weights are stored, how they train, and what is refused."""

import copy
import ctypes
import itertools
import subprocess
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import filigree as fg
from filigree.dynamics.rewire import survivors
from filigree.export import export
from filigree.export.c import export_c as c_module
from filigree.export.c.compiler import STRICT, Compiled, compiler
from filigree.export.c.export_c import export_c
from filigree.export.c.source import Trial, literals

SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def cc():
    command = compiler()
    if command is None:
        pytest.skip("there is no C compiler")
    return command


def execute(cc, path, main, data=b"", flags=SANITIZE):
    """What `main`, linked with the exported program, writes."""
    (path.parent / "main.c").write_text(main.replace("NAME", path.stem).replace("MACRO", path.stem.upper()))
    program = path.parent / "program"
    subprocess.run([*cc, *STRICT, *flags, "-o", program, "main.c", path.name, "-lm"], cwd=path.parent, check=True)
    return subprocess.run([program], input=data, capture_output=True, check=True).stdout


PREDICT = """
#include <stdio.h>
#include "NAME.h"
int main(void) {
    static float x[MACRO_INPUTS], y[MACRO_OUTPUTS];
    while (fread(x, sizeof x, 1, stdin) == 1) { NAME_predict(x, y); fwrite(y, sizeof y, 1, stdout); }
    return 0;
}
"""


def predicted(cc, path, x, flags=SANITIZE):
    out = execute(cc, path, PREDICT, x.float().numpy().tobytes(), flags)
    return torch.from_numpy(np.frombuffer(out, np.float32).copy()).view(len(x), -1)


def agrees(cc, model, path, x, report, flags=SANITIZE):
    with torch.no_grad():
        expected = model.eval()(x).flatten(1)
    assert (predicted(cc, path, x, flags) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert report.relative is not None
    assert report.relative < 1e-5
    return expected


class Functional(nn.Module):
    """A forward of its own, without modules for what has no weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Sequential(nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        x = nn.functional.dropout(x, 0.5, self.training)
        return nn.functional.log_softmax(self.head(x.view(x.size(0), -1)), dim=1)


class Called(nn.Module):
    """A linear layer, what a function makes of its outputs, and another."""

    def __init__(self, function):
        super().__init__()
        self.first, self.function, self.last = nn.Linear(20, 12), function, nn.Linear(12, 3)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def images(*layers):
    """A network for inputs of (2, 9, 11), whose batch norms have seen some."""
    model = nn.Sequential(*layers)
    model(torch.randn(30, 2, 9, 11) * 2 + 1)
    return model


MLP = [20, 30, 16, 5]


def converted(config, activation="relu", dropout=0.0):
    model = fg.models.mlp(MLP, activation=activation, dropout=dropout)
    fg.convert_(model, config)
    return model


def compressed(config, model=None, shape=(20,)):
    model = model or fg.models.mlp(MLP)
    fg.compress_(model, config, torch.randn(200, *shape))
    return model


def lenet(config):
    return compressed(config, fg.models.lenet5().eval(), (1, 28, 28))


FLAT = {
    "mlp": lambda: fg.models.mlp(MLP, dropout=0.2),
    "one layer": lambda: nn.Linear(20, 3, bias=False),
    "activations": lambda: nn.Sequential(
        nn.Linear(20, 30), nn.GELU(), nn.Linear(30, 30), nn.LeakyReLU(0.2), nn.LeakyReLU(0.1), nn.GELU("tanh"),
        nn.BatchNorm1d(30), nn.Linear(30, 30), nn.ELU(), nn.SiLU(), nn.Linear(30, 30), nn.Hardsigmoid(), nn.ReLU6(),
        nn.Hardtanh(-0.5, 0.4), nn.Linear(30, 30), nn.Tanh(), nn.Sigmoid(), nn.Linear(30, 4), nn.Softmax(-1),
    ),
    "sparse": lambda: converted(fg.Sparse(fg.ErdosRenyi(density=0.2))),
    "paths, masked": lambda: converted(fg.Sparse(fg.Paths(40), masked=True)),
    "magnitude": lambda: compressed(fg.MagnitudePruning(keep=0.1, of="connections")),
    "low rank": lambda: compressed(fg.LowRank(3)),
    "structured": lambda: nn.Sequential(
        fg.nn.ACDCLinear(20, 30), fg.nn.AFDFLinear(30, 16), nn.ReLU(), fg.nn.PHDLinear(16, 20),
        fg.nn.CirculantLinear(20, 9), fg.nn.FastfoodLinear(9, 12, bias=True, features="relu"),
        fg.nn.ToeplitzLinear(12, 5),
    ),
    "low rank, of integers": lambda: compressed(fg.MonteCarlo(3.0), compressed(fg.LowRank(3))),
    "units": lambda: compressed(fg.SubsetPruning(keep=0.5)),
    "asymmetric": lambda: converted(fg.Asymmetric.topk(4)),
    "partitions": lambda: converted(fg.PartitionDropout(2), dropout=0.5),
    "connect": lambda: converted(fg.PartitionDropout(2, connect=True)),
    "noisy": lambda: converted(fg.Noisy("NAH"), "tanh"),
    "noisy, above 1": lambda: converted(fg.Noisy("NAN", alpha=1.1, noise="half-normal"), "sigmoid"),
    "noisy input": lambda: converted(fg.Noisy("NANI"), "sigmoid"),
    "mollified": lambda: converted(fg.Mollified(), "sigmoid"),
    "ternary, rms": lambda: compressed(fg.MonteCarlo(0.2, calibrate="rms")),
    "integers, per neuron": lambda: compressed(fg.MonteCarlo(3.0, per="neuron")),
    "rounded": lambda: compressed(fg.RoundToNearest(12)),
    "double": lambda: converted(fg.Sparse(fg.ErdosRenyi(density=0.3))).double(),
}  # fmt: skip

FUNCTIONS = {
    "silu": F.silu, "elu": lambda x: F.elu(x, 0.5), "relu6": lambda x: F.relu6(x, inplace=True),
    "hardswish, mish": lambda x: F.mish(F.hardswish(x)), "softplus, softsign": lambda x: F.softsign(F.softplus(x, 2)),
    "selu, celu, logsigmoid": lambda x: F.logsigmoid(F.celu(F.selu(x), 0.5)),
    "hardsigmoid": F.hardsigmoid, "relu_": F.relu_, "method relu_": lambda x: x.relu_(),
    "view of a tuple": lambda x: x.view((x.shape[0], -1)), "reshape": lambda x: torch.reshape(x, (x.size(0), -1)),
    "reshape by name": lambda x: x.reshape(shape=(-1, 12)),
}  # fmt: skip

IMAGES = {
    "convolutions": lambda: images(
        nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(1, 2), bias=False), nn.BatchNorm2d(4), nn.Hardtanh(),
        nn.Conv2d(4, 6, (3, 2), padding="same", groups=2, dilation=2), nn.Tanh(), nn.BatchNorm2d(6),
        nn.AvgPool2d(2, ceil_mode=True, padding=1), nn.Flatten(), nn.Linear(6 * 3 * 7, 7), nn.BatchNorm1d(7),
    ),
    "max": lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.MaxPool2d((2, 3), 1, dilation=(1, 2))),
    "average": lambda: nn.AvgPool2d(3, 3, 1, ceil_mode=True),
    "average, padding not counted": lambda: nn.AvgPool2d(3, 3, 1, ceil_mode=True, count_include_pad=False),
    "adaptive max": lambda: nn.Sequential(nn.AdaptiveMaxPool2d((3, 1)), nn.Flatten(2), nn.AdaptiveMaxPool1d(1)),
    "adaptive": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((3, 1)), nn.Flatten(), nn.Unflatten(1, (3, 2, 1))),
    "functional": Functional,
    "noisy maps": lambda: (m := nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh()), fg.convert_(m, fg.Noisy("NAN")))[0],
    "nothing": nn.Identity,
    "activation first": nn.ReLU,
    "sparse, quantised": lambda: compressed(
        fg.MonteCarlo(0.5, calibrate="rms"),
        (m := images(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval(),
         fg.convert_(m, fg.Sparse(fg.ErdosRenyi(density=0.4)), ["3"]))[0], (2, 9, 11),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FLAT)
def test_flat_models(cc, tmp_path, kind):
    model = FLAT[kind]()
    if any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        model(torch.randn(40, 20) * 3)
    report = export_c(model, tmp_path / "m.c")  # the shape is known by itself
    x = torch.randn(50, 20) * 1.5
    agrees(cc, model, tmp_path / "m.c", x.double() if kind == "double" else x, report)


@pytest.mark.parametrize("kind", IMAGES)
def test_models_of_images(cc, tmp_path, kind):
    model = IMAGES[kind]()
    report = export_c(model, tmp_path / "m.c", torch.randn(3, 2, 9, 11))
    agrees(cc, model, tmp_path / "m.c", torch.randn(20, 2, 9, 11) * 1.5, report)


@pytest.mark.parametrize("config", [None, fg.MonteCarlo(0.3), fg.RoundToNearest(4)], ids=lambda c: type(c).__name__)
def test_lenets_of_every_kind_of_weight(cc, tmp_path, config):
    model = fg.models.lenet5().eval() if config is None else lenet(config)
    report = export_c(model, tmp_path / "m.c", torch.randn(2, 1, 28, 28))
    agrees(cc, model, tmp_path / "m.c", torch.randn(10, 1, 28, 28), report)
    assert report.ram_bytes >= 4 * (6 * 28 * 28 + 6 * 14 * 14)  # two buffers, each of what it must hold, and no more
    assert report.ram_bytes < 4 * (6 * 28 * 28 + 6 * 14 * 14) + 64
    if config is not None:
        assert report.data_bytes < 35_000  # 247,000 in floats


@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_no_warnings_at_any_level(cc, tmp_path, level):
    export_c(lenet(fg.MonteCarlo(0.3)), tmp_path / "m.c", torch.randn(2, 1, 28, 28))
    predicted(cc, tmp_path / "m.c", torch.randn(2, 1, 28, 28), (level,))
    export_c(converted(fg.Sparse(fg.ErdosRenyi(density=0.3)), "tanh"), tmp_path / "t.c", training=True)
    predicted(cc, tmp_path / "t.c", torch.randn(2, 20), (level,))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_in_place_of_modules(cc, tmp_path, function):
    model = Called(FUNCTIONS[function])
    agrees(cc, model, tmp_path / "m.c", torch.randn(20, 20) * 5, export_c(model, tmp_path / "m.c"))


def test_a_model_that_writes_on_its_input(cc, tmp_path):
    assert export_c(nn.LeakyReLU(0.1, inplace=True), tmp_path / "m.c", torch.randn(4, 6)).relative < 1e-6


def test_parametric_relu_has_one_slope_or_one_a_unit_or_channel(cc, tmp_path):
    each, channels = nn.PReLU(6), nn.PReLU(3)
    with torch.no_grad():
        for module in (each, channels):
            module.weight.copy_(torch.linspace(-0.5, 2, len(module.weight)))
    assert export_c(nn.Sequential(nn.Linear(6, 6), nn.PReLU(init=0.3), each), tmp_path / "m.c").relative < 1e-6
    assert (
        export_c(nn.Sequential(nn.Conv2d(2, 3, 2), channels), tmp_path / "m.c", torch.randn(4, 2, 5, 4)).relative < 1e-6
    )
    with pytest.raises(ValueError, match=r"^export: '0' has 3 units\. Got \(4,\)\.$"):
        export_c(nn.Sequential(channels), tmp_path / "m.c", torch.randn(2, 4))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_constant_example_is_checked_on_other_inputs_too(cc, tmp_path, monkeypatch, training, value):
    run, read = Compiled.run, []
    monkeypatch.setattr(Compiled, "run", lambda self, main, data: read.append(data) or run(self, main, data))
    export_c(fg.models.mlp([64, 8, 3]), tmp_path / "m.c", torch.full((1, 64), value), training=training)
    assert len(np.unique(np.frombuffer(read[0], np.float32))) > 1000


def test_bounds_that_are_infinite(cc, tmp_path):
    model = nn.Sequential(nn.Linear(5, 4), nn.Hardtanh(0.0, torch.inf))
    agrees(cc, model, tmp_path / "m.c", torch.randn(9, 5), export_c(model, tmp_path / "m.c"))
    assert export_c(model, tmp_path / "t.c", training=True).relative < 1e-5


def test_a_batch_norm_called_like_a_function_of_the_program(cc, tmp_path):
    model = nn.Sequential(OrderedDict(relu=nn.ReLU(), scale=nn.BatchNorm1d(6)))
    model(torch.randn(30, 6))
    agrees(cc, model, tmp_path / "m.c", torch.randn(5, 6), export_c(model, tmp_path / "m.c", torch.randn(2, 6)))


# -- forms of weights ------------------------------------------------------------------------------------------------


def sparse_layer(rows, columns, *connections):
    """A `SparseLinear` of the connections (row, column)."""
    flat_indices = torch.tensor(sorted(row * columns + column for row, column in connections))
    layer = fg.nn.SparseLinear(columns, rows, flat_indices=flat_indices)
    nn.init.normal_(layer.values)
    return layer


def integer_layer(rows, columns, largest, share=1.0):
    counts = torch.randint(-largest, largest + 1, (rows, columns)) * (torch.rand(rows, columns) < share)
    counts[0, 0] = largest
    return fg.nn.IntegerLinear(counts.int(), torch.rand(rows) / largest, None, torch.randn(rows))


def ternary_far_apart():
    counts = torch.zeros(4, 5000, dtype=torch.int32)
    counts[:, 4000], counts[:, 4900], counts[:2, 2000] = 1, -1, 1
    return fg.nn.IntegerLinear(counts, torch.ones(1))


FORMS = {
    "dense": lambda: nn.Linear(40, 20),
    "sparse, 8-bit columns": lambda: sparse_layer(9, 200, (0, 3), (0, 199), (3, 7), (8, 0)),
    "sparse, 16-bit columns": lambda: sparse_layer(2, 60_000, (0, 59_999), (1, 30_000)),
    "sparse, 8-bit distances": lambda: sparse_layer(
        3, 700, *((2, 11 * i) for i in range(60)), (0, 400), (0, 255), (1, 256)
    ),
    "sparse, a bit a weight": lambda: sparse_layer(3, 700, *((2, 2 * i) for i in range(300)), (0, 699)),
    "integers of 8 bits": lambda: integer_layer(20, 30, 127),
    "integers of 16 bits": lambda: integer_layer(20, 30, 3000),
    "integers of 32 bits": lambda: integer_layer(20, 30, 40_000),
    "sparse integers, 8-bit columns": lambda: integer_layer(20, 200, 100, 0.03),
    "sparse integers, a bit a weight": lambda: integer_layer(20, 200, 3000, 0.3),
    "signs, a bit a weight": lambda: integer_layer(21, 33, 1),
    "integers of 5 bits, a bit a weight": lambda: integer_layer(20, 203, 9, 0.3),
    "integers of 7 bits, a bit a weight": lambda: integer_layer(20, 203, 60, 0.3),
    "ternary, 2 bits a weight": lambda: fg.nn.IntegerLinear(2 * torch.randint(0, 2, (21, 33)) - 1, torch.ones(1)),
    "integers of 4 bits": lambda: integer_layer(21, 33, 7),
    "a byte a sample": lambda: integer_layer(20, 400, 1, 0.05),
    "ternary, columns of +1 and of -1": ternary_far_apart,
}


@pytest.mark.parametrize("form", FORMS)
def test_each_layer_takes_its_smallest_form(cc, tmp_path, form):
    model = FORMS[form]()
    report = export_c(model, tmp_path / "m.c")
    assert [layer.form for layer in report.layers] == [form]
    assert form in str(report)
    # against float64: sums of large integers in torch's own kernel are less exact than the program's
    x, exact = torch.randn(8, model.in_features), model if form == "dense" else model.dense()
    expected = copy.deepcopy(exact).double()(x.double()).detach()
    assert (predicted(cc, tmp_path / "m.c", x) - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("flags", [("-Os",), ("-O2", "-DFILIGREE_PLAIN"), ("-O2", *SANITIZE), ("-O3", "-march=native")])
def test_vectors_and_plain_programs_agree(cc, tmp_path, flags):
    """Sides that are no multiple of a vector, rows shorter than one, padding on either side; without warnings."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, (1, 7), padding=(0, 9), dilation=(1, 2)),
        nn.Conv2d(4, 3, 3, padding=2, dilation=2, groups=1), nn.Tanh(), nn.Conv2d(3, 3, (2, 30), padding=(0, 13)),
        nn.Conv2d(3, 4, 3, stride=(2, 1)), nn.Flatten(), nn.LazyLinear(37), nn.ReLU(), nn.Linear(37, 70),
        integer_layer(21, 70, 127), nn.Linear(21, 3),
    ).eval()  # fmt: skip
    x = torch.randn(6, 2, 12, 29)
    model(x)
    report = export_c(model, tmp_path / "m.c", x)
    assert "integers of 8 bits" in str(report)
    agrees(cc, model, tmp_path / "m.c", x, report, ("-Wconversion", *flags))


def test_a_layer_without_connections(cc, tmp_path):
    model = nn.Sequential(sparse_layer(3, 300, (1, 2)), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].values.zero_()
    agrees(cc, model, tmp_path / "m.c", torch.randn(4, 300), export_c(model, tmp_path / "m.c"))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("options", [{}, {"activations": "int8"}, {"training": True}], ids=str)
def test_a_layer_without_units(cc, tmp_path, options):
    model, x = nn.Sequential(nn.Linear(6, 0), nn.ReLU(), nn.Linear(0, 3)), torch.randn(8, 6)
    report = export_c(model, tmp_path / "m.c", x, **options)
    assert report.difference <= 1e-6
    if not options:
        agrees(cc, model, tmp_path / "m.c", x, report)


def test_a_log_softmax_of_large_scores(cc, tmp_path):
    model, x = nn.Sequential(nn.LogSoftmax(1)), torch.randn(20, 3) + 3e5
    agrees(cc, model, tmp_path / "m.c", x, export_c(model, tmp_path / "m.c", x))


def test_floats_come_back_as_they_are(cc, tmp_path):
    bits = torch.randint(0, 2**31 - 1, (4000,), dtype=torch.int32)
    numbers = bits.numpy().view(np.float32)
    numbers = np.concatenate([numbers[np.isfinite(numbers)], np.float32([1e-45, -0.0, 3.4028235e38, 0.1])])
    assert np.array_equal(np.float32([text[:-1] for text in literals(numbers)]), numbers)
    layer = nn.Linear(1, len(numbers), bias=False)
    layer.weight.data = torch.from_numpy(numbers)[:, None]
    path = tmp_path / "m.c"
    export_c(layer, path)
    assert np.array_equal(predicted(cc, path, torch.ones(1, 1)).numpy()[0], numbers)


def test_only_the_headers_that_are_needed_and_no_memory_but_static(tmp_path):
    export_c(fg.models.mlp(MLP), tmp_path / "plain.c")
    export_c(fg.models.mlp(MLP, activation="tanh"), tmp_path / "tanh.c")
    for name, wanted in (("plain", ["stddef", "stdint"]), ("tanh", ["stddef", "stdint", "math"])):
        text = (tmp_path / f"{name}.c").read_text()
        assert [line for line in text.splitlines() if line.startswith("#include")] == [
            f'#include "{name}.h"', *(f"#include <{header}.h>" for header in wanted)
        ]  # fmt: skip
        assert "alloc" not in text
    header = (tmp_path / "plain.h").read_text()
    assert "#define PLAIN_INPUTS 20\n#define PLAIN_OUTPUTS 5\n" in header
    assert "void plain_predict(const float *input, float *output);" in header


def test_names_in_c(cc, tmp_path):
    model = nn.ModuleDict({"linear": nn.Linear(4, 4), "linear_2": nn.Linear(4, 4)})
    chain = nn.Sequential(model["linear"], nn.Sequential(model["linear_2"]), nn.Linear(4, 2))
    report = export_c(chain, tmp_path / "3 nets-v1.2.c")
    assert report.prefix == "net_3_nets_v1_2"
    assert (tmp_path / "3 nets-v1.2.h").is_file()


def test_a_pruned_and_quantised_network_is_small_and_as_good(cc, tmp_path):
    data = fg.data.load("digits")
    model = fg.models.mlp([64, 300, 100, 10])
    fg.fit(model, data.train, optimizer=torch.optim.Adam(model.parameters(), 1e-3), epochs=20, progress=False)
    before = fg.evaluate(model, data.test)["accuracy"]
    fg.compress_(model, fg.SubsetPruning(keep=0.25), data.train)
    fg.compress_(model, fg.MonteCarlo(samples=0.5), data.train)
    path = tmp_path / "m.c"
    report = export_c(model, path, data.test.x)
    library = tmp_path / "m.so"
    subprocess.run([*cc, *STRICT, "-Os", "-shared", "-fPIC", "-o", library, path, "-lm"], check=True)
    predict = ctypes.CDLL(str(library)).m_predict
    y, right = (ctypes.c_float * 10)(), 0
    for x, label in zip(data.test.x.numpy(), data.test.y.tolist(), strict=True):
        predict(x.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), y)
        right += max(range(10), key=y.__getitem__) == label
    accuracy = right / len(data.test.y)
    assert accuracy == pytest.approx(fg.evaluate(model, data.test)["accuracy"], abs=0.005)  # a tie may fall elsewhere
    assert accuracy > before - 0.06
    assert report.data_bytes < 6_000  # 209,000 as it was trained
    if report.flash_bytes is not None:
        assert report.data_bytes < report.flash_bytes < report.data_bytes + 3_000


def test_sums(cc, tmp_path):
    model, x = Sums(), torch.randn(9, 6)
    agrees(cc, model, tmp_path / "m.c", x, export_c(model, tmp_path / "m.c", x))
    report = export_c(fg.models.resnet((1, 1), 8).eval(), tmp_path / "m.c", torch.randn(3, 3, 9, 8))
    assert report.relative < 1e-5
    assert {"kept", "restored", "sum"} <= {layer.what for layer in report.layers}
    assert report.ram_bytes == 4 * 4 * 8 * 9 * 8  # two buffers by turns, and two that serve all that is kept


def test_activations_far_from_zero(cc, tmp_path):
    x = torch.cat([torch.linspace(-100, 100, 200), torch.linspace(-4, 4, 200)]).view(20, 20)
    for module in (nn.Hardswish(), nn.Mish(), nn.Softplus(2.0, 5.0), nn.Softsign(), nn.LogSigmoid(), nn.CELU(0.7)):
        model = nn.Sequential(module, nn.SELU())
        agrees(cc, model, tmp_path / "m.c", x, export_c(model, tmp_path / "m.c", x))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_weights_of_recurrent_layers_take_the_smallest_form(cc, tmp_path, kind):
    model = Recurrent(kind, sizes=(24, 40)).eval()
    dense = export_c(model, tmp_path / "dense.c", x := torch.randn(4, 5, 3))
    densities = {"weight_ih_l0": 0.0, "weight_hh_l0": 0.1, "weight_ih_l1": 0.4, "weight_hh_l1": 1.0}
    with torch.no_grad():
        for name, density in densities.items():
            weight = getattr(model.recurrent, name)
            weight.mul_(torch.rand(weight.shape) < density)
    report = export_c(model, tmp_path / "m.c", x)
    assert report.relative < 1e-5
    first, second = (layer for layer in report.layers if kind.__name__.lower() in layer.what)
    assert first.form == "sparse, 8-bit columns"
    assert second.form == "sparse, a bit a weight and dense"
    kept = sum(int((getattr(model.recurrent, name) != 0).sum()) for name in densities)
    absent = sum(getattr(model.recurrent, name).numel() for name in densities) - kept
    assert dense.data_bytes - report.data_bytes > 3 * absent
    agrees(cc, model, tmp_path / "m.c", x, report)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("way", ["sparse", "circulant", "one-shot"])
def test_recurrent_layers_with_other_layers_as_weights(cc, tmp_path, kind, way):
    ways = {"sparse": fg.Sparse(fg.ErdosRenyi(density=0.2)), "circulant": fg.Circulant()}
    x = torch.randn(6, 5, 3)
    model = Recurrent(kind, sizes=(24, 24)).eval()
    if way in ways:
        fg.convert_(model, ways[way], where=["recurrent"])
    else:
        fg.compress_(model, fg.OneShot(0.5, bits=4), x, where=["recurrent"])
    assert isinstance(model.recurrent, fg.nn.StructuredRNN)
    agrees(cc, model, tmp_path / "m.c", x, export_c(model, tmp_path / "m.c", x))
    assert export_c(model, tmp_path / "i.c", x, activations="int8").difference == 0  # from its simulation


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_remember_what_came_before(cc, tmp_path, kind):
    model, x = Recurrent(kind).eval(), torch.randn(5, 7, 3)
    if kind is nn.LSTM:  # what differs from torch while training only is written too
        fg.convert_(model, fg.Asymmetric.topk(3), where=["recurrent"])
    for parameter in model.recurrent.parameters():
        nn.init.uniform_(parameter, -1, 1)
    report = export_c(model, tmp_path / "m.c", x)
    assert report.relative < 1e-5
    assert f"{kind.__name__.lower()} 4 -> 6" in {layer.what for layer in report.layers}
    main = """
    #include <stdio.h>
    #include "NAME.h"
    int main(void) {
        static float x[3], y[MACRO_OUTPUTS];
        for (int i = 0; fread(x, sizeof x, 1, stdin) == 1; ++i) {
            if (i % MACRO_MOMENTS == 0) { NAME_reset(); }
            NAME_step(x, y);
            fwrite(y, sizeof y, 1, stdout);
        }
        return 0;
    }
    """
    out = np.frombuffer(execute(cc, tmp_path / "m.c", main, x.numpy().tobytes()), np.float32).reshape(5, 7, 2)
    with torch.no_grad():
        expected = torch.stack([model(x[:, : moment + 1]) for moment in range(7)], 1)
    assert np.abs(out - expected.numpy()).max() < 1e-5
    assert expected.std(1).min() > 1e-3  # each moment says something else


def test_signals_in_every_kind_of_program(cc, tmp_path):
    class Signals(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv1d(2, 4, 5, 2, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2, padding=1),
                nn.Conv1d(4, 6, 3, padding="same", dilation=2, groups=2), nn.Tanh(), nn.AvgPool1d(3, 2, 1),
                nn.AdaptiveAvgPool1d(2),
            )  # fmt: skip
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(F.max_pool1d(self.layers(x), 2).flatten(1))

    model, x, path = Signals(), torch.randn(64, 2, 30), tmp_path / "m.c"
    model(x)
    report = export_c(model.eval(), path, x)
    agrees(cc, model, path, x, report)
    assert "scale and shift" not in {layer.what for layer in report.layers}  # it is in the weights
    assert export_c(model, path, x, activations="int8").difference == 0
    model.layers[1] = nn.Identity()
    assert export_c(model, path, x, training=True, batch=4).relative < 1e-5
    with pytest.raises(ValueError, match=r"'layers\.0' reads \(2, height, width\) a sample. Got \(3, 1, 30\)"):
        export_c(model, path, torch.randn(2, 3, 30))


# -- training --------------------------------------------------------------------------------------------------------

STEPS = """
#include <stdio.h>
#include "NAME.h"
int main(void) {
    static float x[MACRO_BATCH * MACRO_INPUTS], loss; static KIND y[MACRO_BATCH WIDTH]; unsigned batch, rewire;
    while (fread(&batch, sizeof batch, 1, stdin) == 1 && fread(&rewire, sizeof rewire, 1, stdin) == 1) {
        if (rewire) { REWIRE }
        if (batch <= MACRO_BATCH && (fread(x, sizeof(float) * MACRO_INPUTS, batch, stdin) != batch
                || fread(y, sizeof(KIND) WIDTH, batch, stdin) != batch)) { return 1; }
        loss = NAME_train_step(x, y, batch, RATEf);
        fwrite(&loss, sizeof loss, 1, stdout);
    }
    fwrite(&NAME_weights, sizeof NAME_weights, 1, stdout);
    VELOCITY
    return 0;
}
"""
ZETA = float(np.float32(0.3))


def steps_in_c(cc, path, batches, rate, rewire=(), mse=False, momentum=True, sparse=True, zeta=0.3, also=""):
    """Losses, and the numbers of the two structs by their names; before the steps in `rewire` it is rewired.

    By the call `also`, which may read `x` and `y`, the batch before, or by one that draws random numbers.
    """
    words = {
        "KIND": "float" if mse else "int", "WIDTH": "* MACRO_OUTPUTS" if mse else "", "RATE": repr(rate),
        "REWIRE": also or (f"NAME_rewire({zeta}f, rewire);" if sparse else ""),
        "VELOCITY": "fwrite(&NAME_velocity, sizeof NAME_velocity, 1, stdout);" if momentum else "",
    }  # fmt: skip
    main = STEPS
    for word, text in words.items():
        main = main.replace(word, text)
    data = b""
    for number, (x, y) in enumerate(batches):
        data += np.uint32([len(x), number + 1 if number in rewire else 0]).tobytes()
        if len(x) <= 16:  # the program reads no more
            data += x.numpy().tobytes() + (y.numpy() if mse else y.int().numpy()).tobytes()
    out = execute(cc, path, main, data)
    losses, rest = np.frombuffer(out[: 4 * len(batches)], np.float32), out[4 * len(batches) :]
    structs = []
    for struct in path.with_suffix(".h").read_text().split("typedef struct {")[1:]:
        fields = [line.split() for line in struct.split("}")[0].strip().splitlines()]
        kinds = [(n.split("[")[0], k.removesuffix("_t"), int(n.split("[")[1][:-2])) for k, n in fields]
        dtype = np.dtype([(name, kind.replace("float", "float32"), size) for name, kind, size in kinds], align=True)
        structs.append(np.frombuffer(rest[: dtype.itemsize], dtype)[0])
        rest = rest[dtype.itemsize :]
    assert not rest
    return losses, *structs


def network(kind):
    if kind == "dense":
        return fg.models.mlp([12, 20, 16, 4])
    model = fg.models.mlp([12, 40, 30, 4], activation="tanh" if kind == "masked" else "relu")
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3), masked=kind == "masked"), where=["fc1", "fc2"])
    return model


def batches(count, size=16, mse=False):
    teacher = torch.randn(12, 4)
    steps = []
    for i in range(count):
        x = torch.randn(size - i % 3, 12)  # batches of several sizes
        y = x @ teacher
        steps.append((x, y if mse else y.argmax(1)))
    return steps


def steps_in_torch(model, steps, optimizer, mse=False):
    losses = []
    for x, y in steps:
        loss = nn.functional.mse_loss(model(x), y) if mse else nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.float32(losses)


def close(ours, theirs):
    theirs = theirs.detach().numpy().reshape(-1)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sparse", {}), ("dense", {"nesterov": True}), ("masked", {"weight_decay": 0.01}),
        ("sparse", {"loss": "mse", "momentum": 0.0, "weight_decay": 0.001}), ("dense", {"loss": "mse"}),
    ],
)  # fmt: skip
def test_a_hundred_steps_as_torch_takes_them(cc, tmp_path, kind, options):
    model, mse = network(kind), options.get("loss") == "mse"
    momentum = options.get("momentum", 0.9)
    report = export_c(model, tmp_path / "m.c", training=True, batch=16, **options)
    assert "steps of" in report.verified
    steps, rate = batches(100, mse=mse), 0.02 if mse else 0.05
    flags = {"mse": mse, "momentum": momentum > 0, "sparse": kind != "dense"}
    losses, weights, *velocity = steps_in_c(cc, tmp_path / "m.c", steps, rate, **flags)
    start = model.fc1.weight.detach().clone() if kind == "dense" else None
    options = {key: value for key, value in options.items() if key != "loss"}
    optimizer = torch.optim.SGD(model.parameters(), rate, **{"momentum": 0.9, **options})
    expected = steps_in_torch(model, steps, optimizer, mse)
    assert np.abs(losses - expected).max() < 1e-5 * expected.max()
    assert losses[-10:].mean() < 0.7 * losses[:10].mean()
    for name in ("fc1", "fc2", "fc3"):
        layer = getattr(model, name)
        own = layer.sparse() if kind == "masked" and name != "fc3" else layer
        close(weights[f"{name}_values"], getattr(own, "values", None) if hasattr(own, "indptr") else own.weight)
        close(weights[f"{name}_bias"], layer.bias)
        if momentum:
            close(velocity[0][f"{name}_bias"], optimizer.state[layer.bias]["momentum_buffer"])
    if start is not None:
        assert (model.fc1.weight - start).abs().max() > 0.05  # the steps were no small ones


def check_sorted(weights, name, rows, columns):
    """Check that rows are sorted and without duplicates; the flat indices."""
    starts, indices = weights[f"{name}_starts"].astype(int), weights[f"{name}_columns"].astype(int)
    assert starts[0] == 0
    assert starts[-1] == len(indices)
    assert (np.diff(starts) >= 0).all()
    assert indices.max() < columns
    for begin, end in itertools.pairwise(starts):
        assert (np.diff(indices[begin:end]) > 0).all()
    return np.repeat(np.arange(rows), np.diff(starts)) * columns + indices


def test_rewiring_takes_the_weakest_and_grows_as_many(cc, tmp_path):
    model = network("sparse")
    export_c(model, tmp_path / "m.c", training=True, batch=16)
    steps = batches(21)
    large = (torch.zeros(17, 12), torch.zeros(17, dtype=torch.int64))  # too large a batch: nothing is done
    _, before, velocity_before = steps_in_c(cc, tmp_path / "m.c", steps[:20], 0.1)
    with_data = [*steps[:20], (large[0][:0], large[1][:0])]  # an empty batch: only the rewiring
    losses, after, velocity = steps_in_c(cc, tmp_path / "m.c", with_data, 0.1, rewire=[20])
    assert losses[-1] == -1
    for name, rows, columns in (("fc1", 40, 12), ("fc2", 30, 40)):
        old, new = check_sorted(before, name, rows, columns), check_sorted(after, name, rows, columns)
        keep = survivors(torch.from_numpy(before[f"{name}_values"].copy()), ZETA).numpy()
        kept = old[keep]
        is_kept = np.isin(new, kept) & (after[f"{name}_values"] != 0)
        assert np.array_equal(new[is_kept], kept)  # and as many new ones, as the size is the same
        assert 0.25 < 1 - keep.mean() < 0.35
        assert np.array_equal(after[f"{name}_values"][is_kept], before[f"{name}_values"][keep])
        assert np.array_equal(velocity[f"{name}_values"][is_kept], velocity_before[f"{name}_values"][keep])
        assert not velocity[f"{name}_values"][~is_kept].any()
        assert not after[f"{name}_values"][~is_kept].any()
        assert not set(new[~is_kept]) & set(kept)
        assert len(set(new[~is_kept]) - set(old)) > 0.3 * (~is_kept).sum()
    assert np.array_equal(before["fc3_values"], after["fc3_values"])  # a dense layer stays
    assert steps_in_c(cc, tmp_path / "m.c", [large], 0.1)[0].tolist() == [-1.0]


def test_rewiring_reaches_columns_that_were_not_in_use(cc, tmp_path):
    model = nn.Sequential(sparse_layer(3, 400, *((row, 5 * i) for row in range(3) for i in range(40))))
    export_c(model, tmp_path / "m.c", training=True, batch=16)
    nothing = [(torch.zeros(0, 400), torch.zeros(0, dtype=torch.int64))] * 3
    _, after, _ = steps_in_c(cc, tmp_path / "m.c", nothing, 0.1, rewire=[0, 1, 2], zeta=0.7)
    check_sorted(after, "layer_0", 3, 400)
    assert after["layer_0_columns"].max() > 255


@pytest.mark.parametrize("zeta", [0.0, 0.5, 1.0])
def test_of_equal_weights_the_first_go_and_halves_round_to_even(cc, tmp_path, zeta):
    model = nn.Sequential(sparse_layer(6, 9, *((i % 6, i % 9) for i in range(18)), *((i % 6, 8 - i) for i in range(7))))
    with torch.no_grad():
        model[0].values.copy_(torch.tensor([1.0, -0.5, 1.0, 0.0, 2.0])[torch.arange(model[0].nnz) % 5])
    before, flat_indices = model[0].values.detach().clone(), model[0].flat_indices().numpy()
    export_c(model, tmp_path / "m.c", training=True, batch=16)
    nothing = [(torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64))]
    _, after, _ = steps_in_c(cc, tmp_path / "m.c", nothing, 0.1, rewire=[0], zeta=zeta)
    keep = survivors(before, zeta).numpy()
    new = check_sorted(after, "layer_0", 6, 9)
    stays = after["layer_0_values"] != 0
    assert np.array_equal(new[stays], flat_indices[keep])
    assert np.array_equal(after["layer_0_values"][stays], before.numpy()[keep])


def test_training_goes_on_after_rewiring(cc, tmp_path):
    model = network("sparse")
    export_c(model, tmp_path / "m.c", training=True, batch=16)
    steps = batches(300)
    losses, weights, _ = steps_in_c(cc, tmp_path / "m.c", steps, 0.05, rewire=range(50, 250, 50))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    expected = steps_in_torch(model, steps[:50], optimizer)
    assert np.abs(losses[:50] - expected).max() < 1e-5 * expected.max()
    assert losses[-20:].mean() < 0.5 * losses[30:50].mean()
    for name, rows, columns in (("fc1", 40, 12), ("fc2", 30, 40)):
        check_sorted(weights, name, rows, columns)


def test_new_connections_are_drawn_uniformly(cc, tmp_path):
    model = nn.Sequential(sparse_layer(5, 4, (0, 0), (1, 1), (2, 2), (4, 3)))
    with torch.no_grad():
        model[0].values.zero_()  # all of them go
    export_c(model, tmp_path / "m.c", training=True)
    main = """
    #include <stdio.h>
    #include "NAME.h"
    int main(void) {
        for (uint32_t seed = 0; seed < 5000; ++seed) {
            NAME_rewire(0.5f, seed);
            for (int row = 0; row < 5; ++row) {
                for (int i = m_weights.net_0_starts[row]; i < m_weights.net_0_starts[row + 1]; ++i) {
                    putchar(row * 4 + m_weights.net_0_columns[i]);
                }
            }
        }
        return 0;
    }
    """.replace("net_0", "layer_0")
    drawn = np.frombuffer(execute(cc, tmp_path / "m.c", main), np.uint8).reshape(5000, 4)
    assert (np.diff(drawn.astype(int)) > 0).all()
    counts = np.bincount(drawn.reshape(-1), minlength=20)
    assert np.abs(counts - 1000).max() < 5 * (5000 * 0.2 * 0.8) ** 0.5  # five standard deviations
    pairs = len({tuple(row) for row in drawn})
    assert pairs > 0.9 * 4845 * (1 - np.exp(-5000 / 4845))  # sets of 4 of 20, as many as chance has it


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_none_changes_nothing(cc, tmp_path, label):
    model = network("dense")
    export_c(model, tmp_path / "m.c", training=True, batch=16)
    steps = [(torch.randn(2, 12), torch.tensor([0, label]))]
    losses, weights, _ = steps_in_c(cc, tmp_path / "m.c", steps, 0.1, sparse=False)
    assert losses.tolist() == [-1.0]
    assert np.array_equal(weights["fc1_values"], model.fc1.weight.detach().numpy().reshape(-1))


# -- what is refused -------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.fc(x)


class Broadcast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1)

    def forward(self, x):
        return self.conv(x) + x


class Sums(nn.Module):
    """Sums of what was last, of what was before it, of neither, of a tensor and itself."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, size) for size in (6, 6, 3, 3))

    def forward(self, x):
        y = x + self.a(x.view(x.shape[0], -1)).relu()
        unread = y.tanh()
        z = torch.add(y, self.b(unread).tanh()) + x
        first, second = self.c(z), self.d(y + y)
        second.sigmoid()
        total = sum([first, second])  # which begins with 0
        return total + total


class Recurrent(nn.Module):
    def __init__(self, kind, moment=-1, sizes=(4, 6)):
        super().__init__()
        self.first = nn.Linear(3, sizes[0])
        self.recurrent = kind(*sizes, num_layers=2, batch_first=True, bias=kind is nn.GRU)
        self.last, self.moment = nn.Linear(sizes[1], 2), moment

    def forward(self, x):
        y, _ = self.recurrent(self.first(x).tanh())
        return self.last(y[:, self.moment])


def converted_rnn(config):
    class OfSeries(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0][:, -1]

    model = OfSeries()
    fg.convert_(model, config)
    return model.eval()


def not_finite():
    model = fg.models.mlp([3, 2])
    nn.init.constant_(model.fc1.weight, float("nan"))
    return model


def sampled_activations():
    return compressed(fg.MonteCarlo(0.5, activations=4))


def frozen(*layers):
    model = fg.models.mlp(MLP)
    for parameter in (
        [model.fc2.weight] if not layers else [p for name in layers for p in model.get_submodule(name).parameters()]
    ):
        parameter.requires_grad_(False)
    return model


def norm_of_nan():
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4))
    nn.init.constant_(model[1].bias, torch.nan)
    return model


REFUSED = {
    "path must end in .c": (lambda: fg.models.mlp(MLP), "m.cpp", {}),
    "would hide a header of C": (lambda: fg.models.mlp(MLP), "math.c", {}),
    "'0' is a RNN, which cannot be written as C": (lambda: nn.Sequential(nn.RNN(3, 4)), "m.c", {}),
    "the model is a LSTM, which a program that trains cannot hold": (lambda: nn.LSTM(3, 4), "m.c", {"training": True}),
    "'LSTM' must be of one direction, with batch_first=True": (lambda: nn.LSTM(3, 4), "m.c", {}),
    "'LSTM' must be followed by y[:, -1]": (
        lambda: nn.LSTM(3, 4, batch_first=True), "m.c", {"example": torch.randn(2, 5, 3)}),
    "'LSTM' reads (time, 3) a sample. Got (5,)": (
        lambda: nn.LSTM(3, 4, batch_first=True), "m.c", {"example": torch.randn(2, 5)}),
    "'GRU' must be followed by y[:, -1]": (
        lambda: nn.GRU(3, 4, batch_first=True), "m.c", {"example": torch.randn(2, 5, 3), "activations": "int8"}),
    "'GRU' reads (time, 3) a sample. Got (5,)": (
        lambda: nn.GRU(3, 4, batch_first=True), "m.c", {"example": torch.randn(2, 5), "activations": "int8"}),
    "'rnn' is a NoisyLSTM, whose gates cannot be written as C": (
        lambda: converted_rnn(fg.Noisy("NAH")), "m.c", {"example": torch.randn(2, 5, 8)}),
    "'rnn' is a MollifiedLSTM, whose gates cannot be written as C": (
        lambda: converted_rnn(fg.Mollified()), "m.c", {"example": torch.randn(2, 5, 8), "activations": "int8"}),
    "ACDCLinear: with a ReLU inside it is not linear": (
        lambda: converted_rnn(fg.ACDC(order=2, relu=True)), "m.c", {"example": torch.randn(2, 5, 8)}),
    "Of recurrent layers it may be y[:, -1]": (lambda: Recurrent(nn.GRU, -2), "m.c", {}),
    "the model is a GLU, which cannot be written as C": (nn.GLU, "m.c", {"example": torch.randn(2, 4)}),
    "the model is a PReLU, which a program that trains cannot hold": (nn.PReLU, "m.c", {"training": True}),
    "makes another shape than (batch, numbers)": (lambda: Called(lambda x: x.view((-1,))), "m.c", {}),
    "'1' has a number that is NaN": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(torch.nan)), "m.c", {}),
    "'1' has weights that are not finite": (norm_of_nan, "m.c", {"example": torch.randn(2, 4)}),
    "'0' is a ACDCLinear, which cannot be written as C: ACDCLinear: with a ReLU inside it is not linear.": (
        lambda: nn.Sequential(fg.nn.ACDCLinear(8, 8, order=2, relu=True)), "m.c", {}),
    "'0' has cosines and sines as features": (
        lambda: nn.Sequential(fg.nn.FastfoodLinear(8, 8, features="cos_sin")), "m.c", {}),
    "'0' is a StrengthDropout, which cannot be written as C": (
        lambda: nn.Sequential(fg.nn.StrengthDropout(8)), "m.c", {"example": torch.randn(2, 8)}),
    "What 'x' in the model's forward returns is read by 'fc' and 'add'": (Residual, "m.c", {"training": True}),
    "'add' must add tensors of one shape. Got (1, 4, 4) and (3, 4, 4)": (
        lambda: Broadcast(), "m.c", {"example": torch.randn(2, 1, 4, 4)}),
    "Give a batch of inputs": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3)), "m.c", {}),
    "'1' reads 5 numbers a sample, flat. Got (4,)": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)), "m.c", {}),
    "'fc1' reads 20 numbers": (lambda: fg.models.mlp(MLP), "m.c", {"example": torch.randn(2, 19)}),
    "'Conv2d' reads (3, height, width)": (lambda: nn.Conv2d(3, 2, 3), "m.c", {"example": torch.randn(1, 2, 8, 8)}),
    "padding_mode='zeros'": (
        lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "m.c", {"example": torch.randn(1, 2, 8, 8)}),
    "example must be a batch of floats": (lambda: fg.models.mlp(MLP), "m.c", {"example": torch.ones(2, 20).int()}),
    "example must be finite": (lambda: fg.models.mlp(MLP), "m.c", {"example": torch.full((2, 20), torch.inf)}),
    "example must be a tensor": (lambda: fg.models.mlp(MLP), "m.c", {"example": [1.0]}),
    "'fc1.weight' is torch.float16": (lambda: fg.models.mlp(MLP).half(), "m.c", {}),
    "weights that are not finite": (not_finite, "m.c", {}),
    "samples its activations": (sampled_activations, "m.c", {}),
    "no running statistics": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)), "m.c", {}),
    "dim=1. Got dim=0": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Softmax(0)), "m.c", {}),
    "momentum is for programs that train": (lambda: fg.models.mlp(MLP), "m.c", {"momentum": 0.5}),
    "'dropout1' is a Dropout, which a program that trains": (
        lambda: fg.models.mlp(MLP, dropout=0.1), "m.c", {"training": True}),
    "'1' is a BatchNorm2d, which a program that trains": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), "m.c", {"training": True}),
    "a sample. Got (1, 8, 8)": (
        lambda: nn.Conv2d(3, 1, 1), "m.c", {"training": True, "example": torch.randn(1, 1, 8, 8)}),
    "Give a batch: fg.export(model, path, x)": (lambda: nn.Conv2d(3, 1, 1), "m.c", {"training": True}),
    "a program that trains keeps the k largest of each sensitivity": (
        lambda: converted(fg.Asymmetric.partial(3, 4)), "m.c", {"training": True}),
    "'fc2' has frozen weights beside others that train": (frozen, "m.c", {"training": True}),
    "'fc2' has frozen weights behind 'fc1', which trains": (lambda: frozen("fc2"), "m.c", {"training": True}),
    "a linear layer or a convolution to train": (lambda: frozen("fc1", "fc2", "fc3"), "m.c", {"training": True}),
    "adaptive must be a smaller share and a larger one": (
        lambda: fg.models.mlp(MLP), "m.c", {"training": True, "adaptive": (0.5, 0.1)}),
    "unknown field 'speed'": (lambda: fg.models.mlp(MLP), "m.c", {"training": True, "speed": 1}),
    "batch must be greater than or equal to 1": (lambda: fg.models.mlp(MLP), "m.c", {"training": True, "batch": 0}),
    "nesterov needs a momentum": (
        lambda: fg.models.mlp(MLP), "m.c", {"training": True, "momentum": 0.0, "nesterov": True}),
    "must follow a layer with weights": (
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(3, 4)), "m.c", {"training": True}),
    "there is no folder": (lambda: fg.models.mlp(MLP), "nowhere/m.c", {}),
    "must have inputs and outputs. Got 0 and 4": (lambda: nn.Sequential(nn.Linear(0, 4)), "m.c", {}),
    "must have inputs and outputs. Got 4 and 0": (lambda: nn.Sequential(nn.Linear(4, 0)), "m.c", {"training": True}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused_says_why_in_one_line_and_leaves_nothing(tmp_path, message):
    make, name, options = REFUSED[message]
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        export_c(make(), tmp_path / name, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_header_that_cannot_be_written_leaves_the_old_program(tmp_path):
    (tmp_path / "m.c").write_text("as it was")
    (tmp_path / "m.h").mkdir()
    with pytest.raises(ValueError, match=r"m\.h: a file was expected"):
        export_c(fg.models.mlp(MLP), tmp_path / "m.c")
    assert (tmp_path / "m.c").read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.c", "m.h"]


def test_numbers_that_differ_leave_no_file(cc, tmp_path, monkeypatch):
    monkeypatch.setattr(Trial, "allows", lambda self, difference, largest: False)
    with pytest.raises(RuntimeError, match="differs from torch by"):
        export_c(fg.models.mlp(MLP), tmp_path / "m.c")
    assert not list(tmp_path.iterdir())


def test_a_program_that_does_not_compile_leaves_no_file(tmp_path, monkeypatch):
    foreign = tmp_path.with_name("foreign")
    foreign.write_bytes(b"no program")
    foreign.chmod(0o755)
    for name, message in (
        ("false", "false failed with 1"), ("false -m64", "false failed with 1"), (str(foreign), "cannot be run here"),
        ("no-such-compiler", "CC must name a C compiler"), ("'gcc", "CC must name a C compiler"),
    ):  # fmt: skip
        monkeypatch.setenv("CC", name)
        with pytest.raises(RuntimeError, match=message):
            export_c(fg.models.mlp(MLP), tmp_path / "m.c")
        assert not list(tmp_path.iterdir())


def test_a_compiler_with_options(cc, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", f"{cc[0]} -DFILIGREE")
    assert "compared with torch" in str(export_c(fg.models.mlp(MLP), tmp_path / "m.c"))


def test_an_option_of_another_kind_of_file_is_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match=r"\.c files have the options loss, batch, .*Got 'sparse'"):
        export(fg.models.mlp(MLP), tmp_path / "m.c", sparse="dense")
    with pytest.raises(TypeError, match=r"\.onnx files have the options sparse, dynamic, .*Got 'batch'"):
        export(fg.models.mlp(MLP), tmp_path / "m.onnx", torch.randn(2, 20), batch=16)


def test_without_a_compiler_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(c_module, "compiler", lambda: None)
    report = export_c(fg.models.mlp(MLP), tmp_path / "m.c")
    assert "not verified: no C compiler" in str(report)
    assert report.difference is None
    assert report.flash_bytes is None
    assert (tmp_path / "m.c").is_file()


def test_the_model_stays_as_it_was(tmp_path):
    model = fg.models.mlp(MLP, dropout=0.5).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_c(model, tmp_path / "m.c")
    model = fg.models.mlp(MLP).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_c(model, tmp_path / "m.c", training=True)
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_what_is_frozen_in_eval_mode_stays_so(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train()
    model[1].eval()
    export_c(model, tmp_path / "m.c")
    assert [module.training for module in model.modules()] == [True, True, False]
