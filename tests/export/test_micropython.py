"""Modules of MicroPython around programs: that they compile, and, where its sources are, what they compute."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import filigree as fg
from filigree.export.c.compiler import compiler
from filigree.export.c.int8_network import Int8Network

STUB = Path(__file__).with_name("micropython")


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.last = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        y, _ = self.gru(x)
        return self.last(y[:, -1])


def network(classes=3):
    return fg.models.mlp([20, 12, classes])


def learner():
    model = network()
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["fc1"])
    return model


KINDS = {
    "floats": (network, 20, {}, {"predict"}),
    "integers": (network, 20, {"activations": "int8"}, {"predict", "quantize"}),
    "moments": (Recurrent, (5, 4), {}, {"predict", "step", "reset"}),
    "series": (
        Recurrent, (5, 4), {"activations": "int8"}, {"predict", "quantize", "step", "reset", "quantize_step"},
    ),
    "learner": (learner, 20, {"training": True, "batch": 4}, {"predict", "train_step", "rewire"}),
    "targets": (
        learner, 20, {"training": True, "loss": "mse", "grow": "gradient"}, {"predict", "train_step", "rewire"},
    ),
    "frozen": (network, 20, {"training": True}, {"predict", "train_step"}),
}  # fmt: skip


def exported(path, kind):
    make, shape, options, _ = KINDS[kind]
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(16, *(shape if isinstance(shape, tuple) else (shape,)))
    path.parent.mkdir(parents=True, exist_ok=True)
    report = fg.export(model, path, x, target="cortex-m4", **options)
    return model, x, report


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
@pytest.mark.parametrize("kind", KINDS)
def test_modules_compile(tmp_path, kind, monkeypatch):
    writer = sys.modules["filigree.export.c.export_c"]
    monkeypatch.setattr(writer, "compiler", lambda: None)  # the program itself is not of concern here
    monkeypatch.setattr(sys.modules["filigree.export.device.footprint"], "missing_tools", lambda **_: "absent")
    _, _, report = exported(tmp_path / "net.c", kind)
    assert {f"micropython/{name}" for name in ("module.c", "network.c", "micropython.mk", "micropython.cmake")} < set(
        report.project
    )
    folder = tmp_path / "micropython"
    entries = [line for line in (folder / "module.c").read_text().splitlines() if "MP_ROM_PTR(&call_" in line]
    assert {line.split("MP_QSTR_")[1].split(")")[0] for line in entries} == KINDS[kind][3]
    warnings = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wdouble-promotion", "-Wfloat-conversion", "-Wno-unused"]
    for file in ("module.c", "network.c"):
        subprocess.run([*compiler(), *warnings, f"-I{STUB}", "-fsyntax-only", str(folder / file)], check=True)
    subprocess.run(
        [*compiler(), "-fsyntax-only", "-Wunused", "-Werror", f"-I{STUB}", str(folder / "module.c")], check=True
    )


def test_names_that_make_cannot_read_stand_in_the_source_alone(tmp_path):
    fg.export(network(), tmp_path / "my net#1.c", target="cortex-m4")
    folder = tmp_path / "micropython"
    assert (folder / "network.c").read_text().endswith('#include "../my net#1.c"\n')
    assert all("my net" not in (folder / name).read_text() for name in ("micropython.mk", "micropython.cmake"))
    assert "MP_REGISTER_MODULE(MP_QSTR_my_net_1, " in (folder / "module.c").read_text()


SCRIPT = """
import array, floats, integers, moments, series, learner, targets

def refused(call, *arguments):
    try:
        call(*arguments)
    except (ValueError, TypeError) as error:
        return str(error)

x = [i / 20 - 0.4 for i in range(20)]
memory = bytes(array.array("f", x))
for given in (tuple(x), array.array("f", x), memory, memoryview(bytes(1) + memory)[1:]):
    assert floats.predict(given) == floats.predict(x)
print(*floats.predict(x))
print(*integers.predict(integers.quantize(x)))
assert integers.predict(list(array.array("b", integers.quantize(x)))) == integers.predict(integers.quantize(x))
print(*moments.predict(x))
moments.reset()
for i in range(5):
    last = moments.step(x[4 * i : 4 * i + 4])
assert last == moments.predict(x)
series.reset()
for i in range(5):
    last = series.step(series.quantize_step(x[4 * i : 4 * i + 4]))
assert last == series.predict(series.quantize(x))
assert moments.MOMENTS == series.MOMENTS == 5
losses = [learner.train_step(x * 2, (2, 2), 0.1) for _ in range(20)]
assert losses[-1] < 0.1 * losses[0], losses
learner.rewire(0.3, 7)
assert learner.predict(x).index(max(learner.predict(x))) == 2
losses = [targets.train_step(x, [1, 0, 0], 0.1) for _ in range(50)]
assert losses[-1] < 0.1 * losses[0], losses
targets.rewire(0.3, x, [1, 0, 0])
print(refused(floats.predict, x[1:]))
print(refused(floats.predict, b"12345"))
print(refused(integers.predict, [200] * 20))
print(refused(learner.train_step, x, 3, 0.1))
print(refused(learner.train_step, x, [0, 1], 0.1))
"""


@pytest.mark.long("MicroPython is compiled, a minute or two")
@pytest.mark.skipif("MICROPYTHON" not in os.environ, reason="MICROPYTHON names no folder of MicroPython's sources")
def test_micropython_computes_what_torch_does(tmp_path):
    models = {kind: exported(tmp_path / kind / f"{kind}.c", kind) for kind in KINDS if kind != "frozen"}
    (tmp_path / "modules").mkdir()
    for kind in models:
        (tmp_path / "modules" / kind).symlink_to(tmp_path / kind / "micropython")
    port = Path(os.environ["MICROPYTHON"], "ports", "unix")
    without = [f"MICROPY_{part}=0" for part in ("PY_SSL", "PY_BTREE", "PY_FFI", "VFS_LFS1", "VFS_LFS2")]
    options = [f"BUILD={tmp_path / 'build'}", f"USER_C_MODULES={tmp_path / 'modules'}", "FROZEN_MANIFEST=", *without]
    subprocess.run(["make", "-j2", "-C", str(port.parents[1] / "mpy-cross")], check=True, capture_output=True)
    subprocess.run(["make", "-j2", "-C", str(port), *options], check=True, capture_output=True)
    (tmp_path / "script.py").write_text(SCRIPT)
    ran = subprocess.run([tmp_path / "build" / "micropython", tmp_path / "script.py"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    x = torch.arange(20) / 20 - 0.4
    integer = Int8Network(*models["integers"][:2])
    assert [int(word) for word in lines[1].split()] == integer.integers(integer.stored(x[None]))[0].tolist()
    for line, kind, sample in ((lines[0], "floats", x[None]), (lines[2], "moments", x.view(1, 5, 4))):
        expected = models[kind][0](sample)[0].detach()
        torch.testing.assert_close(torch.tensor([float(word) for word in line.split()]), expected)
    assert lines[3:] == [
        "floats: 20 numbers expected, got 19", "floats: 4 numbers expected, got 5",
        "integers: numbers of -128 to 127 expected", "learner: 1 to BATCH samples and labels of outputs expected",
        "learner: 1 numbers expected, got 2",
    ]  # fmt: skip
