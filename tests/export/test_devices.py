"""Programs on emulated devices: numbers, flash, RAM, instructions, project files, budgets."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch import nn

import filigree as fg
from filigree.export import export
from filigree.export.c.compiler import compiler
from filigree.export.device import emulator
from filigree.export.device.emulator import firmware, missing_tools
from filigree.export.device.targets import TARGETS, bytes_of, target_of

needs_emulator = pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))


def mlp(activation="relu"):
    return fg.models.mlp([20, 30, 5], activation=activation)


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, groups=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(6 * 3 * 2, 3), nn.Softmax(1),
    )  # fmt: skip


def learner():
    model = fg.models.mlp([20, 30, 5])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.3)), where=["fc1"])
    return model


KINDS = {
    "mlp": lambda path, **options: export(mlp("tanh"), path, **options),
    "convolutions": lambda path, **options: export(convolutions(), path, torch.randn(2, 1, 10, 8), **options),
    "learner": lambda path, **options: export(learner(), path, training=True, batch=4, **options),
}


@needs_emulator
@pytest.mark.parametrize(
    ("target", "kind"),
    [("cortex-m3", "mlp"), ("cortex-m4", "convolutions"), ("cortex-m33", "learner")],
)
def test_a_program_computes_the_same_on_a_device(tmp_path, target, kind):
    report = KINDS[kind](tmp_path / "m.c", target=target)
    assert f"run as on a {target}" in report.verified
    needed = report.device
    assert (needed.weighed, needed.timed) == ("by the linker's map", f"counted by qemu ({TARGETS[target].machine})")
    assert abs(needed.weights - report.data_bytes) <= 64  # a compiler may put what is read once into the code
    assert 100 < needed.code < 4000
    # floats in software are code, and take ten times the instructions and more
    each = needed.instructions / sum(layer.macs for layer in report.layers) / (2 if kind == "learner" else 1)
    assert 3 < each < 60 if TARGETS[target].has_floats else 60 < each < 1000
    assert 40 < needed.stack < 1000
    assert needed.ram == needed.memory + needed.stack
    assert report.to_dict()["device"]["flash"] == needed.flash == needed.weights + needed.code + needed.libraries


@needs_emulator
@pytest.mark.long("each kind of program on each of the processors, half a minute")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_program_on_each_processor(tmp_path, target, kind):
    assert "largest difference" in KINDS[kind](tmp_path / "m.c", target=target).verified.splitlines()[1]


@needs_emulator
def test_instructions_are_counted(tmp_path):
    """A loop of known length; the timer must also turn over, which it does every 13 million instructions."""
    source = (
        '#include "m.h"\nvoid m_wait(unsigned n) {\n'
        '    while (n > 0) {\n        __asm volatile("" : "+r"(n));\n        --n;\n    }\n}\n'
    )
    main = '#include "m.h"\nint main(void) { m_wait(MANY); return 0; }\n'
    declaration = "void m_wait(unsigned n);"
    for name in ("cortex-m4", "cortex-m33"):
        with firmware(source, declaration + "\n", "m", TARGETS[name], "-std=gnu99", "-Wno-pedantic") as f:
            counts = []
            for many in (10_000_000, 30_000_000):
                f.link(main.replace("MANY", str(many)), declaration)
                run = f.run(b"")
                assert run.calls == 1
                counts.append(run.instructions)
        each = (counts[1] - counts[0]) / 20_000_000
        assert each == pytest.approx(round(each), abs=1e-4)
        assert round(each) in (2, 3)


@needs_emulator
def test_a_program_that_fails_on_the_device_is_an_error(tmp_path):
    source, header = (
        '#include "m.h"\nvoid m_fail(void) {\n    *(volatile int *)0xf0000000u = 1;\n}\n',
        "void m_fail(void);\n",
    )
    with firmware(source, header, "m", TARGETS["cortex-m3"]) as f:
        f.link('#include "m.h"\nint main(void) { m_fail(); return 0; }\n')
        with pytest.raises(RuntimeError, match=r"^export: qemu-system-arm failed with \d+"):
            f.run(b"")


@needs_emulator
@pytest.mark.long("cmake looks at the compiler twice")
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed; Debian: apt install cmake")
def test_the_project_builds_and_runs_in_the_emulator(tmp_path):
    model = convolutions()
    report = export(model, tmp_path / "net.c", torch.randn(2, 1, 10, 8), target="cortex-m4")
    assert {"CMakeLists.txt", "zephyr/module.yml", "library.properties", "examples/net/net.ino"} <= set(report.project)
    assert all((tmp_path / name).is_file() for name in report.project)
    x = torch.randn(3, 1, 10, 8)
    (tmp_path / "input.bin").write_bytes(x.numpy().tobytes())
    for arguments in (
        ("-B", "build", "--toolchain", "emulator/toolchain.cmake"), ("--build", "build"),
        ("--build", "build", "--target", "run"),
    ):  # fmt: skip
        subprocess.run(["cmake", *arguments], cwd=tmp_path, check=True, capture_output=True)
    outputs = np.frombuffer((tmp_path / "output.bin").read_bytes(), np.float32).reshape(3, 3)
    assert np.abs(outputs - model.eval()(x).detach().numpy()).max() < 1e-5


@pytest.mark.long("cmake looks at the compiler")
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed; Debian: apt install cmake")
@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
def test_the_project_builds_on_this_machine(tmp_path):
    export(mlp(), tmp_path / "net.c", target="cortex-m4")
    subprocess.run(["cmake", "-B", "build", "."], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", "build"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "build" / "libnet.a").is_file()


@pytest.mark.parametrize("absent", ["nothing is installed", "no emulator"])
def test_without_the_tools_it_is_arithmetic(tmp_path, monkeypatch, absent):
    if absent == "no emulator" and missing_tools(emulator=False):
        pytest.skip(missing_tools(emulator=False))
    exact = export(mlp(), tmp_path / "m.c", target="cortex-m4").device
    which = shutil.which
    hidden = (emulator.EMULATOR,) if absent == "no emulator" else (emulator.EMULATOR, emulator.COMPILER)
    monkeypatch.setattr(shutil, "which", lambda name: None if name in hidden else which(name))
    report = export(mlp(), tmp_path / "m.c", target="cortex-m4")
    assert "apt install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm" in report.verified
    assert report.device.timed == "by arithmetic"
    if "counted" in exact.timed:
        for quantity in ("flash", "instructions"):
            assert 0.5 < getattr(report.device, quantity) / getattr(exact, quantity) < 2
    with pytest.raises(ValueError, match="bytes of RAM of 100"):
        export(mlp(), tmp_path / "small.c", target="cortex-m4", ram=100)
    assert not (tmp_path / "small.c").exists()


def test_what_does_not_fit_is_refused_with_the_numbers(tmp_path):
    message = (
        r"^export: \S+ does not fit: on a cortex-m4 it needs [\d,]+ bytes of flash of 2,048 \(weights 3,140, "
        r"code \d+, libraries \d+\) and [\d,]+ bytes of RAM of 64 \(static \d+, stack \d+\)\. Nothing was written\.$"
    )
    with pytest.raises(ValueError, match=message):
        export(mlp(), tmp_path / "m.c", target="cortex-m4", flash="2k", ram=64)
    assert not list(tmp_path.iterdir())
    assert export(mlp(), tmp_path / "m.c", target="cortex-m4", flash="64k", ram="16 KiB").device.flash_limit == 65536


@pytest.mark.parametrize("name", ["all", "m"])
def test_names_that_cmake_keeps_for_itself(tmp_path, name):
    export(mlp(), tmp_path / f"{name}.c", target="cortex-m4")
    assert f"add_library({name}_network STATIC" in (tmp_path / "CMakeLists.txt").read_text()


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "CMakeLists.txt").write_text("project(mine)\n")
    with pytest.raises(ValueError, match=r"CMakeLists\.txt is there, and not of filigree"):
        export(mlp(), tmp_path / "m.c", target="cortex-m4")
    assert [file.name for file in tmp_path.iterdir()] == ["CMakeLists.txt"]
    (tmp_path / "CMakeLists.txt").unlink()
    for _ in range(2):  # its own it writes anew
        export(mlp(), tmp_path / "m.c", target="cortex-m4")


@pytest.mark.parametrize("size", [0, -4, "many", "4x", True, 0.5])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match=r"^export: flash must be a number of bytes, as 65536, 64k or 1M\. Got "):
        bytes_of(size, "flash")


def test_sizes_and_names():
    assert [bytes_of(size, "ram") for size in (100, "100", "64k", "64 KiB", "1.5M", None)] == [
        100, 100, 65536, 65536, 1572864, None,
    ]  # fmt: skip
    assert target_of("Cortex-M4").name == "cortex-m4"
    with pytest.raises(ValueError, match=r"^export: target must be one of cortex-m0plus, .*\. Got 'z80'\.$"):
        target_of("z80")


def test_budgets_need_a_target(tmp_path):
    with pytest.raises(ValueError, match="flash and ram are of a target"):
        export(mlp(), tmp_path / "m.c", flash="2k")
    with pytest.raises(TypeError, match="onnx files have the options"):
        export(mlp(), tmp_path / "m.onnx", target="cortex-m4")
