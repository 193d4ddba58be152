"""Networks drawn from all layers that have a form in C: no warnings in C99 and C++17, clean under sanitizers, exact."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import filigree as fg
from filigree.export.c.compiler import compiler
from filigree.export.c.export_c import export_c

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
SANITIZE = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MAIN = """
#include <stdio.h>
#include "NAME"
int main(void) {
    static float x[M_INPUTS], y[M_OUTPUTS];
    while (fread(x, sizeof x, 1, stdin) == 1) { m_predict(x, y); fwrite(y, sizeof y, 1, stdout); }
    return 0;
}
"""

ACTIVATIONS = {
    "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.1), "prelu": nn.PReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU, "elu": nn.ELU, "gelu": nn.GELU, "gelu tanh": lambda: nn.GELU("tanh"), "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.7), "hardsigmoid": nn.Hardsigmoid, "dropout": nn.Dropout,
}  # fmt: skip


class Branches(nn.Module):
    """Sums of what two branches make of their input, the second of which may be the input itself."""

    def __init__(self, first, second, *, in_place, again, relu):
        super().__init__()
        self.first, self.second, self.in_place, self.again, self.relu = first, second, in_place, again, relu

    def forward(self, x):
        y = self.first(x)
        if self.in_place:
            y += self.second(x)
        else:
            y = self.second(x) + y
        y = x + y if self.again else y
        return y.relu() if self.relu else y


class Series(nn.Module):
    """Layers on each time step, with a sum if asked for; recurrent layers; layers on the last time step."""

    def __init__(self, before, recurrent, after, *, adds):
        super().__init__()
        self.before, self.recurrent, self.after, self.adds = before, recurrent, after, adds

    def forward(self, x):
        x = self.before(x)
        y, _ = self.recurrent(x)
        y = x + y if self.adds else y
        return self.after(y[:, -1])


@st.composite
def series(draw):
    """A recurrent network in eval mode, and the shape of a sample."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    time, features, inputs, units = (draw(st.integers(1, most)) for most in (6, 5, 6, 9))
    kind, adds = draw(st.sampled_from([nn.LSTM, nn.GRU])), draw(st.booleans())
    units = inputs if adds else units
    activation = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]()
    before = nn.Sequential(nn.Linear(features, inputs), activation)
    recurrent = kind(inputs, units, draw(st.integers(1, 2)), batch_first=True, bias=draw(st.booleans()))
    largest, density = draw(st.sampled_from([0.1, 1.0, 4.0])), draw(st.sampled_from([0.1, 0.5, 1.0]))
    for parameter in recurrent.parameters():
        nn.init.uniform_(parameter, -largest, largest)
        parameter.data *= torch.rand_like(parameter) < density
    after = [nn.Linear(units, draw(st.integers(1, 4)))] if draw(st.booleans()) else []
    after += [nn.Softmax(1)] if draw(st.booleans()) else []
    return Series(before, recurrent, nn.Sequential(*after), adds=adds).eval(), (time, features)


@st.composite
def branches(draw, shape):
    """A module that leaves the shape as it is."""

    def branch():
        size = shape[0]
        layer = nn.Linear(size, size) if len(shape) == 1 else nn.Conv2d(size, size, 3, padding=1)
        scaled = draw(st.sampled_from([0.01, 1.0, 10.0]))
        layer.weight.data *= scaled
        return nn.Sequential(layer, ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]())

    second = branch() if draw(st.booleans()) else nn.Identity()
    flags = {name: draw(st.booleans()) for name in ("in_place", "again", "relu")}
    return Branches(branch(), second, **flags)


@st.composite
def sizes(draw, most):
    return draw(st.integers(1, most)), draw(st.integers(1, most))


@st.composite
def networks(draw):
    """A network in eval mode, and the shape of a sample."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    layers, shape = [], (draw(st.integers(1, 4)), *draw(sizes(9)))
    if draw(st.booleans()):
        shape = (draw(st.integers(1, 40)),)
    start = shape
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(
            st.sampled_from(
                ["weights", "weights", "activation", "norm", "sum", *(["pool", "flatten"] * (len(shape) == 3))]
            )
        )
        if kind == "activation":
            layers.append(ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]())
            continue
        if kind == "norm":
            norm = (nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d)(shape[0])
            nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2), nn.init.normal_(norm.bias)
            layers.append(norm)
            continue
        if kind == "sum":
            layers.append(draw(branches(shape)))
            continue
        if kind == "flatten":
            layers.append(nn.Flatten())
        elif kind == "pool":
            kernel = tuple(min(a, b) for a, b in zip(draw(sizes(3)), shape[1:], strict=True))
            options = {
                "stride": draw(sizes(3)), "padding": draw(st.integers(0, min(kernel) // 2)),
                "ceil_mode": draw(st.booleans()),
            }  # fmt: skip
            average = {"count_include_pad": draw(st.booleans())}
            layers.append(
                nn.MaxPool2d(kernel, **options) if draw(st.booleans()) else nn.AvgPool2d(kernel, **options, **average)
            )
        elif len(shape) == 1:
            layers.append(nn.Linear(shape[0], draw(st.integers(1, 30)), draw(st.booleans())))
        else:
            groups = draw(st.sampled_from([g for g in (1, shape[0]) if shape[0] % g == 0]))  # plain, or depthwise
            kernel = tuple(min(a, b) for a, b in zip(draw(sizes(3)), shape[1:], strict=True))
            layers.append(nn.Conv2d(
                shape[0], groups * draw(st.integers(1, 3)), kernel, draw(sizes(2)), draw(sizes(2)), groups=groups,
                bias=draw(st.booleans()),
            ))  # fmt: skip
        shape = tuple(layers[-1](torch.zeros(2, *shape)).shape[1:])
    if len(shape) == 1 and draw(st.booleans()):
        layers.append(nn.Softmax(1) if draw(st.booleans()) else nn.LogSoftmax(1))
    model = nn.Sequential(*layers).eval()
    weights = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    form = draw(st.sampled_from(["dense", "sparse", "rounded", "sampled"])) if weights else "dense"
    if form == "sparse":
        for module in weights:
            module.weight.data *= torch.rand_like(module.weight) < 0.2
    elif form != "dense":
        fg.compress_(model, fg.RoundToNearest(draw(st.integers(2, 16))) if form == "rounded" else fg.MonteCarlo(2.0))
    return model, start


def check(case):
    model, shape = case
    x = torch.randn(6, *shape) * 2
    with torch.no_grad():
        expected = model(x).flatten(1).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.c")
        export_c(model, path, x)  # compiles it in C99 without warnings, and compares
        Path(folder, "main.c").write_text(MAIN.replace("NAME", "m.h"))
        outputs = []
        for command in (
            [*compiler(), "-std=c99", *WARNINGS, *SANITIZE, "m.c", "main.c"],
            [shutil.which("g++"), "-x", "c++", "-std=c++17", *WARNINGS, *SANITIZE, "m.c", "main.c"],
        ):
            if command[0] is None:
                continue
            subprocess.run([*command, "-o", "program", "-lm"], cwd=folder, check=True)
            done = subprocess.run([Path(folder, "program")], input=x.numpy().tobytes(), capture_output=True, check=True)
            outputs.append(np.frombuffer(done.stdout, np.float32).reshape(len(x), -1))
    for output in outputs:
        assert np.abs(output - expected).max() <= 1e-4 * max(1e-3, np.abs(expected).max())


needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


@needs_compiler
@settings(max_examples=4, deadline=None)
@given(networks())
def test_a_few_networks(case):
    check(case)


@needs_compiler
@pytest.mark.long("ten seconds of compilers")
@settings(max_examples=6, deadline=None)
@given(series())
def test_many_recurrent_networks(case):
    check(case)


@needs_compiler
@pytest.mark.long("half a minute of compilers")
@settings(max_examples=25, deadline=None)
@given(networks())
def test_many_networks(case):
    check(case)


@needs_compiler
@pytest.mark.parametrize("options", [{}, {"loss": "mse", "momentum": 0.0}])
def test_a_program_that_trains_has_no_warnings_either(tmp_path, options):
    model = fg.models.mlp([20, 30, 5], activation="tanh")
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["fc1"])
    export_c(model, tmp_path / "m.c", training=True, **options)
    for command in (["cc", "-std=c99"], ["g++", "-x", "c++", "-std=c++17"]):
        if shutil.which(command[0]):
            subprocess.run([*command, *WARNINGS, "-fsyntax-only", "m.c"], cwd=tmp_path, check=True)


@needs_compiler
@pytest.mark.parametrize("name", ["-o.c", "--help.c", "-.c", "it's.c", "a b.c", "$(ls).c", "100%s.c", "é.c"])
def test_names_that_a_shell_or_a_compiler_might_read_otherwise(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    report = export_c(nn.Linear(4, 3), name)
    assert "compared with torch" in report.verified
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, name[:-2] + ".h"])


@pytest.mark.parametrize("name", ['q"x.c', "b\\x.c", "n\nx.c"])
def test_names_that_no_include_can_hold_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="must be printable, without quotes and backslashes"):
        export_c(nn.Linear(4, 3), tmp_path / name)
    assert not list(tmp_path.iterdir())
