"""C programs of 8-bit integers: bit for bit what the module of torch says, near the floats, without warnings."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_c_properties import SANITIZE, WARNINGS, needs_compiler, networks, series
from torch import nn

import filigree as fg
from filigree.export import export
from filigree.export.c.compiler import compiler
from filigree.export.c.export_c import export_c
from filigree.export.c.int8_network import Int8Network
from filigree.export.c.int8_products import product
from filigree.export.c.int8_steps import Scale, Sum, multiplier, rescaled
from filigree.export.c.kept import Kept
from filigree.export.device.emulator import missing_tools
from filigree.ops.c_steps import Affine, csr
from filigree.sklearn.labels import SoftmaxOfColumns

MAIN = """
#include <stdio.h>
#include "m.h"
int main(void) {
    static int8_t x[M_INPUTS], y[M_OUTPUTS];
    while (fread(x, sizeof x, 1, stdin) == 1) { m_predict(x, y); fwrite(y, sizeof y, 1, stdout); }
    return 0;
}
"""


def run(folder, main, data, *flags):
    Path(folder, "main.c").write_text(main)
    strict = [*compiler(), "-std=c99", *WARNINGS, *flags, "m.c", "main.c", "-o", "program"]
    subprocess.run(strict, cwd=folder, check=True)
    return subprocess.run([Path(folder, "program")], input=data, capture_output=True, check=True).stdout


def images():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2, padding=1),  # counts its padding
        nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.PReLU(8), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.Conv2d(8, 6, 1), nn.Tanh(), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(24, 5), nn.Softmax(1),
    )  # fmt: skip
    nn.init.normal_(model[5].weight)
    model(torch.randn(50, 2, 9, 10))
    return model.eval()


def sparse_images():
    model = images()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= torch.rand_like(module.weight) < 0.15
    return model


def scaled():
    return nn.Sequential(fg.nn.Standardize(torch.arange(12.0), torch.linspace(1, 4, 12)), *fg.models.mlp([12, 20, 3]))


def ternary():
    model = fg.models.mlp([60, 40, 5])
    fg.compress_(model, fg.MonteCarlo(0.2), torch.randn(100, 60))
    return model


class Sums(nn.Module):
    """Sums of what was last, of what was before it, of a tensor and itself; in place; before a ReLU."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, size) for size in (6, 6, 3, 3))

    def forward(self, x):
        y = (x + self.a(x)).relu()
        z = torch.add(y, self.b(y.tanh())) + x
        z += y
        first, second = self.c(z), self.d(y + y)
        total = first + second.sigmoid()
        return total + total


def residual():
    model = fg.models.resnet((1, 1), 8)
    model(torch.randn(50, 3, 9, 8))
    nn.init.constant_(model.block1_1.bn2.weight, 0.02)  # a branch of a much smaller scale
    return model.eval()


CASES = {
    "sums": (Sums, (6,)), "residual": (residual, (3, 9, 8)),
    "images": (images, (2, 9, 10)), "sparse images": (sparse_images, (2, 9, 10)), "ternary": (ternary, (60,)),
    "lenet": (lambda: fg.models.lenet5().eval(), (1, 28, 28)),
    "rounded": (lambda: compressed(images(), fg.RoundToNearest(4)), (2, 9, 10)),
    "norm first, and one that turns numbers round": (
        lambda: turned(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3))), (2, 9, 10)),
    "activations": (lambda: nn.Sequential(
        nn.Linear(9, 20), nn.GELU(), nn.Linear(20, 20), nn.LeakyReLU(0.2), nn.Linear(20, 20), nn.PReLU(),
        nn.Linear(20, 9), nn.Hardtanh(-0.4, 0.5), nn.Linear(9, 9), nn.Hardtanh(0.1, 0.5), nn.SiLU()), (9,)),
    "softmax of columns": (lambda: nn.Sequential(nn.Linear(9, 8), SoftmaxOfColumns([3, 1, 4])), (9,)),
    "nothing": (nn.Identity, (7,)),
}  # fmt: skip


def compressed(model, config):
    fg.compress_(model, config)
    return model


def turned(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight), nn.init.normal_(module.running_mean)
    return model.eval()


@needs_compiler
@pytest.mark.parametrize("kind", CASES)
def test_the_program_is_the_network_bit_for_bit(tmp_path, kind):
    make, shape = CASES[kind]
    model, x = make(), torch.randn(64, *shape)
    network = Int8Network(model, x)
    report = export(model, tmp_path / "m.c", x, activations="int8")
    assert "bit for bit: largest difference 0 of" in report.verified
    assert report.difference == 0
    q = torch.randint(-128, 128, (30, *shape))
    out = run(tmp_path, MAIN, q.numpy().astype(np.int8).tobytes(), *SANITIZE)
    assert np.array_equal(np.frombuffer(out, np.int8), network.integers(q).numpy().reshape(-1))
    with torch.no_grad():
        expected = model(x)
    assert (network(x) - expected).abs().mean() < 0.03 * (expected.max() - expected.min())
    source = (tmp_path / "m.c").read_text()
    assert "float" not in source.split("m_quantize")[0]
    if shutil.which("g++"):
        strict = ["g++", "-x", "c++", "-std=c++17", *WARNINGS, "-fsyntax-only", "m.c"]
        subprocess.run(strict, cwd=tmp_path, check=True)


@needs_compiler
@pytest.mark.long("half a minute of compilers")
@settings(max_examples=40, deadline=None)
@given(st.one_of(networks(), series()), st.booleans())
def test_many_networks(tmp_path_factory, case, small):
    model, shape = case
    x = torch.randn(20, *shape) * (1e-3 if small else 1)
    if isinstance(model, nn.Sequential) and isinstance(model[-1], nn.LogSoftmax):
        model = model[:-1]
    folder = tmp_path_factory.mktemp("m")
    assert export_c(model, folder / "m.c", x, activations="int8").difference == 0
    q = torch.randint(-128, 128, (10, *shape))
    out = run(folder, MAIN, q.numpy().astype(np.int8).tobytes(), *SANITIZE)
    assert np.array_equal(np.frombuffer(out, np.int8), Int8Network(model, x).integers(q).numpy().reshape(-1))


@needs_compiler
def test_inputs_are_scaled_and_stored_as_in_torch(tmp_path):
    model, x = scaled(), torch.randn(40, 12) * 3 + 5
    export(model, tmp_path / "m.c", x, activations="int8")
    main = MAIN.replace("static int8_t x[M_INPUTS]", "static float x[M_INPUTS]; static int8_t q[M_INPUTS]")
    main = main.replace("q[M_INPUTS], y", "q[M_INPUTS], y").replace(
        "m_predict(x, y)", "m_quantize(x, q); m_predict(q, y)"
    )
    hard = torch.cat([x, torch.full((1, 12), torch.inf), torch.full((1, 12), -1e30), torch.full((1, 12), torch.nan)])
    out = np.frombuffer(run(tmp_path, main, hard.numpy().tobytes(), *SANITIZE), np.int8).reshape(len(hard), -1)
    network = Int8Network(model, x)
    assert np.array_equal(out[:40], network.integers(network.stored(x)).numpy())
    assert (network(x) - model(x)).abs().max() < 0.05 * model(x).abs().max() + 0.05


@pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))
def test_as_on_a_device_without_floats(tmp_path):
    report = export(images(), tmp_path / "m.c", torch.randn(50, 2, 9, 10), activations="int8", target="cortex-m3")
    assert "bit for bit: largest difference from torch 0" in report.verified
    floats = export(images(), tmp_path / "f.c", torch.randn(50, 2, 9, 10), target="cortex-m3").device
    assert report.device.instructions < 0.5 * floats.instructions
    assert report.device.memory < 0.4 * floats.memory
    assert "__aeabi_f" not in (tmp_path / "m.c").read_text()


def test_scales_and_multipliers():
    for low, high in ((-1, 3), (0, 5), (-2, 0), (0, 0), (2, 4), (-4, -3)):
        scale = Scale.of(low, high)
        q = scale.stored(torch.tensor([low, 0.0, high]))
        assert scale.numbers(q)[1] == 0
        assert (scale.numbers(q) - torch.tensor([low, 0.0, high])).abs().max() <= scale.scale
    for factor in (1e-12, 0.3, 0.9999999999, 1.0, 7.5, 1e-30):
        m, s = multiplier(factor)
        assert 0 <= m < 2**31
        assert 1 <= s <= 62
        assert m / 2.0**s == pytest.approx(factor, rel=2**-29, abs=2**-31)
    halves = rescaled(torch.tensor([-3, -1, 1, 3]), torch.tensor([1]), torch.tensor([1]))
    assert halves.tolist() == [-1, 0, 1, 2]  # halves go up


def test_a_sum_is_the_nearest_integer():
    x, y = (q.reshape(-1) for q in torch.meshgrid(2 * (torch.arange(-128, 128, 3),), indexing="ij"))
    for scales in ((1, 1, 2), (0.1, 3, 3.1), (1e-9, 2e-9, 1.5e-9), (1e5, 1, 1e5), (1, 1e-3, 0.7)):
        for zeros in ((-128, -128, -128), (127, -128, 5), (3, 127, 127)):
            first, second, after = (Scale(scale, zero) for scale, zero in zip(scales, zeros, strict=True))
            step = Sum("add", Kept(), (first, second), after)
            assert max(step.a, step.b) <= 2**21
            q = step.simulated(x, y)
            exact = (first.numbers(x) + second.numbers(y)) / after.scale + after.zero
            assert (q - exact.clamp(-128, 127)).abs().max() <= 0.5 + 2e-4
            ends = [step.a * a + step.b * b + c for a in (-128, 127) for b in (-128, 127) for c in (0, step.offset)]
            assert max(map(abs, ends)) < 2**31
    for ratio in (1e-30, 1e30, 0.0):  # saturated, or nothing
        step = Sum("add", Kept(), (Scale(ratio, 0), Scale(1.0, 0)), Scale(1.0, 0))
        assert step.simulated(torch.tensor([1]), torch.tensor([3])).tolist() == [127 if ratio > 1 else 3]


@needs_compiler
def test_what_a_sum_reads_is_kept_until_then(tmp_path):
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(30, 30) for _ in range(4))

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x).relu()
            return x

    model, x = Chain(), torch.randn(100, 30)
    report = export(model, tmp_path / "m.c", x, activations="int8")
    assert 3 * 30 <= report.ram_bytes < 4 * 30  # two buffers by turns, and one that keeps what is read again
    assert [layer.what for layer in report.layers].count("sum") == 4
    with pytest.raises(ValueError, match=r"'add' must add tensors of one shape\. Got \(1, 4, 4\) and \(3, 4, 4\)"):
        export(Broadcast(), tmp_path / "n.c", torch.randn(9, 1, 4, 4), activations="int8")


class Broadcast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1)

    def forward(self, x):
        return x + self.conv(x)


def test_a_bias_counts_where_weights_are_nothing():
    weight = torch.tensor([[0.0, 0.0], [1e-20, 1e-20], [1.0, -1.0]]).numpy()
    bias = torch.tensor([0.3, -0.7, 0.1]).numpy()
    step = product(Affine("fc", csr(weight), None, bias), Scale(1.0, 0), Scale(1 / 128, 0))
    y = step.after.numbers(step.simulated(torch.zeros(1, 2, dtype=torch.long)))
    assert (y - torch.tensor([0.3, -0.7, 0.1])).abs().max() <= 0.5 / 128 + 1e-3


def test_what_has_no_form_is_refused(tmp_path):
    linear = nn.Linear(4, 3)
    for model, options, message in (
        (
            nn.Sequential(linear, nn.LogSoftmax(1)),
            {"example": torch.randn(8, 4)},
            "'1' is a log-softmax: leave it out",
        ),
        (nn.Sequential(linear, nn.Softmax(0)), {"example": torch.randn(8, 4)}, "flat sample, dim=1. Got dim=0 of "),
        (
            nn.Sequential(fg.nn.Standardize(torch.zeros(18), torch.ones(18)), nn.Conv2d(2, 2, 3)),
            {"example": torch.randn(8, 2, 3, 3)},
            r"has 18 units. Got \(2, 3, 3\)",
        ),
        (linear, {}, "needs calibration data as the example"),
        (linear, {"example": torch.randn(8, 4), "training": True}, "activations='int8' is for inference"),
        (linear, {"example": torch.randn(8, 5)}, "reads 4 numbers a sample, flat"),
    ):
        with pytest.raises(ValueError, match=message):
            export_c(model, tmp_path / "m.c", activations="int8", **options)
    with pytest.raises(ValueError, match=r"activations must be 'float' or 'int8'\. Got 'int4'\."):
        export_c(linear, tmp_path / "m.c", torch.randn(2, 4), activations="int4")
    assert not list(tmp_path.iterdir())
