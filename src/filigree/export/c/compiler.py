"""Use the C compiler of this machine, where there is one: compile a program, run it, weigh it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filigree.config import one_line

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic")


def compiler() -> list[str] | None:
    """Find the command that `CC` is (`gcc -m64`, `ccache gcc`), else cc, gcc or clang; None where there is none.

    Raises:
        RuntimeError: `CC` names no program.
    """
    if named := os.environ.get("CC"):
        try:
            program, *options = shlex.split(named)
        except ValueError:  # a quote without its end, or nothing
            program, options = named, []
        if (path := shutil.which(program)) is None:
            raise RuntimeError(f"export: the environment's CC must name a C compiler. Got {named!r}.")
        return [path, *options]
    path = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return None if path is None else [path]


@dataclass(frozen=True)
class Compiled:
    """It is a program of `name.c` and `name.h` in a folder of its own: weighed as compiled for size, run for speed."""

    name: str
    folder: str
    compiler: Sequence[str]

    def run(self, main: str, data: bytes) -> bytes:
        """Return what `main`, a program that calls this one, writes when it reads these data."""
        Path(self.folder, "main.c").write_text(main)
        program = str(Path(self.folder, "program"))
        _call([*self.compiler, *STRICT, "-O2", "-o", program, "main.c", "network.c", "-lm"], self.folder)
        return _call([program], self.folder, data)

    def weigh(self) -> tuple[int, int, int] | None:
        """Count bytes of code and constants, of initialised and of zeroed memory; None without the tool `size`."""
        if (size := shutil.which("size")) is None:
            return None
        numbers = _call([size, "network.o"], self.folder).decode().splitlines()[1].split()
        return int(numbers[0]), int(numbers[1]), int(numbers[2])


@contextmanager
def compiled(source: str, header: str, name: str, compiler: Sequence[str]) -> Iterator[Compiled]:
    """Compile the program and keep it while it is needed; warnings are errors.

    Raises:
        RuntimeError: it does not compile, cannot be run on this machine, or ends with an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "network.c").write_text(source)  # not by its own name, which may begin with a "-"
        Path(folder, f"{name}.h").write_text(header)
        _call([*compiler, *STRICT, "-Os", "-fno-asynchronous-unwind-tables", "-c", "network.c"], folder)
        yield Compiled(name, folder, compiler)


def _call(command: Sequence[str], folder: str, data: bytes = b"") -> bytes:
    try:
        done = subprocess.run(command, cwd=folder, input=data, capture_output=True)
    except OSError as error:  # a compiler for another machine, perhaps
        raise RuntimeError(
            f"export: {Path(command[0]).name} cannot be run here: {error.strerror}. Let the environment's CC name a C "
            "compiler for this machine."
        ) from None
    if done.returncode:
        reason = one_line(done.stderr.decode(errors="replace"), 300)
        raise RuntimeError(f"export: {Path(command[0]).name} failed with {done.returncode}: {reason}")
    return done.stdout
