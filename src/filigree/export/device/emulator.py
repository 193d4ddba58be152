"""Compile a C program for a device with arm-none-eabi-gcc, weigh it by the linker's map, run it in qemu.

`fread` and `fwrite` of a program's `main` read `input.bin` and write `output.bin` by semihosting (`board.c.in`), so
the same `main` runs on this machine and on the emulated one. Instructions are counted by the emulator's clock: under
`-icount shift=5` an instruction takes 32 ns of the board's timer, which ticks every 40 or 50.
"""

from __future__ import annotations

import re
import shutil
import string
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filigree.config import one_line
from filigree.export.device.targets import Target

COMPILER, EMULATOR = "arm-none-eabi-gcc", "qemu-system-arm"
INSTALL = "apt install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
_SIZED = ("-Os", "-ffunction-sections", "-fdata-sections", "-mthumb")
_SHIFT = 5  # an instruction takes 2^5 ns of the emulator's clock
_SECTION = re.compile(r"^ (\.[\w.$]+|COMMON)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+) (.+)$", re.M)


def missing_tools(*, emulator: bool = True) -> str | None:
    """Say what must be installed, in a line; None if all is there."""
    tools = (COMPILER, EMULATOR) if emulator else (COMPILER,)
    absent = [tool for tool in tools if shutil.which(tool) is None]
    return f"{' and '.join(absent)} not installed; Debian: {INSTALL}" if absent else None


@dataclass(frozen=True)
class Weight:
    """Bytes by the linker's map: constants, code, libraries (C's mathematics, floats in software), memory."""

    constants: int
    code: int
    libraries: int
    memory: int
    initialised: int  # of the memory: flash holds its first values too

    @property
    def flash(self) -> int:
        return self.constants + self.code + self.libraries + self.initialised


@dataclass(frozen=True)
class Run:
    """What an emulated run wrote; of the measured function calls, their instructions, the deepest stack in bytes."""

    output: bytes
    calls: int
    instructions: int
    stack: int


@dataclass(frozen=True)
class Firmware:
    """It is a program `name.c`, `name.h`, compiled for a target, in a folder of its own."""

    name: str
    folder: str
    target: Target

    def weigh(self, functions: Sequence[str]) -> Weight:
        """Weigh what these functions of the program need."""
        self._link("int main(void) { return 0; }\n", "", [f"-Wl,--undefined={name}" for name in functions])
        return _weighed(Path(self.folder, "program.map").read_text())

    def link(self, main: str, measured: str = "") -> None:
        """Link with this `main`, and measure a function, declared as `void m_predict(const float *x, float *y);`."""
        around = _around(measured, f"{self.name}.h") if measured else ""
        self._link(main, around, [f"-Wl,--wrap={function_of(measured)}"] if measured else [])

    def _link(self, main: str, around: str, options: list[str]) -> None:
        folder = Path(self.folder)
        texts = {"main.c": main, "around.c": around or "typedef int none;\n", "board.c": template("board.c.in")}
        for name, text in {**texts, "board.ld": board_script(self.target)}.items():
            (folder / name).write_text(text)
        link = ["--specs=nano.specs", "-nostartfiles", "-Tboard.ld", "-Wl,--gc-sections,-Map=program.map", *options]
        libraries = ["-lm", "-lc", "-lgcc"]
        flags = [*self.target.flags, *_SIZED]
        _call([COMPILER, *flags, *link, "-o", "program.elf", *texts, "program.o", *libraries], self.folder)

    def run(self, data: bytes, seconds: float = 120) -> Run:
        """Run what was linked. `RuntimeError`: it ended with an error, or not in time."""
        folder = Path(self.folder)
        (folder / "input.bin").write_bytes(data)
        for name in ("output.bin", "measured.bin"):
            (folder / name).unlink(missing_ok=True)
        _call([*emulated(self.target), "-kernel", "program.elf"], self.folder, seconds)
        output, measured = (
            (folder / name).read_bytes() if (folder / name).is_file() else b""
            for name in ("output.bin", "measured.bin")
        )
        ticks, calls, stack = struct.unpack("<QII", measured) if measured else (0, 0, 0)
        return Run(output, calls, ticks * self.target.clock >> _SHIFT, stack)


@contextmanager
def firmware(source: str, header: str, name: str, target: Target, *flags: str) -> Iterator[Firmware]:
    """Compile the program for the target and keep it while it is needed; warnings are errors.

    Raises:
        RuntimeError: it does not compile; the cross compiler is not installed.
    """
    if why := missing_tools(emulator=False):
        raise RuntimeError(f"export: {why}.")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "program.c").write_text(source)  # not by its own name, which may begin with a "-"
        Path(folder, f"{name}.h").write_text(header)
        _call([COMPILER, *target.flags, *_SIZED, *WARNINGS, *flags, "-c", "program.c"], folder)
        yield Firmware(name, folder, target)


def emulated(target: Target) -> list[str]:
    """Return the command that runs a program for this target, but for the program."""
    quiet = ["-display", "none", "-monitor", "none", "-serial", "none"]
    counted = ["-semihosting-config", "enable=on,target=native", "-icount", f"shift={_SHIFT},sleep=off"]
    return [EMULATOR, "-M", target.machine, *quiet, *counted]


def template(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


def board_script(target: Target) -> str:
    """Write the linker's script of the target's board."""
    words = {"machine": target.machine, "flash": f"{target.flash:#010x}", "ram": f"{target.ram:#010x}"}
    return string.Template(template("board.ld.in")).substitute(words)


def function_of(declaration: str) -> str:
    """Return the name of the function that a declaration in C declares."""
    return declaration.split("(")[0].split()[-1]


def _around(declaration: str, header: str) -> str:
    """Write the function that stands for the measured one, and calls it between two looks at the timer."""
    name = function_of(declaration)
    result, rest = declaration.split(name, 1)[0].strip(), declaration.split(name, 1)[1].rstrip(";\n ")
    arguments = ", ".join(part.split()[-1].lstrip("*") for part in rest.strip("()").split(","))
    keep, give = (f"const {result} value = ", "return value;") if result != "void" else ("", "return;")
    return (
        f'#include "{header}"\nuint64_t board_begin(void);\nvoid board_end(uint64_t begin);\n'
        f"{result} __real_{name}{rest};\n{result} __wrap_{name}{rest};\n{result} __wrap_{name}{rest}\n{{\n"
        f"    const uint64_t begin = board_begin();\n    {keep}__real_{name}({arguments});\n"
        f"    board_end(begin);\n    {give}\n}}\n"
    ).replace("uint64_t board_begin", "#include <stdint.h>\nuint64_t board_begin", 1)


def _weighed(text: str) -> Weight:
    """Sum the sections of the program and of libraries, which the linker kept, by its map."""
    text = re.sub(r"\n (\.\S+|COMMON)\n\s+(0x)", r"\n \1 \2", text.split("Linker script and memory map", 1)[1])
    constants = code = libraries = memory = initialised = 0
    for section, _, size_text, file in _SECTION.findall(text):
        size, own = int(size_text, 16), file.strip() == "program.o"
        if not own and ".a(" not in file:  # the board and its main
            continue
        if section.startswith((".bss", "COMMON")):
            memory += size
        elif section.startswith(".data"):
            memory += size
            initialised, libraries = initialised + size * own, libraries + size * (not own)
        elif section.startswith((".text", ".rodata")):
            if not own:
                libraries += size
            elif section.startswith(".rodata"):
                constants += size
            else:
                code += size
    return Weight(constants, code, libraries, memory, initialised)


def _call(command: Sequence[str], folder: str, seconds: float | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds)
    except FileNotFoundError:
        raise RuntimeError(f"export: {command[0]} is not installed; Debian: {INSTALL}.") from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"export: {command[0]} did not end within {seconds} s.") from None
    if done.returncode:
        reason = one_line(done.stderr.decode(errors="replace"), 300)
        raise RuntimeError(f"export: {command[0]} failed with {done.returncode}: {reason}")
