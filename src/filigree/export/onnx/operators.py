"""Build the library of filigree's operators for ONNX Runtime from its source, once a process."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filigree.config import one_line

SOURCE = Path(__file__).with_name("operators.cpp.in")
_OPTIONS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-Wno-psabi")


@contextmanager
def operators(wanted: bool = True) -> Iterator[str | None]:
    """Keep the library as a file while it is needed, and give its path; None where it is not wanted.

    Raises:
        RuntimeError: there is no C++ compiler, or it fails.
    """
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "filigree.so")
        path.write_bytes(_library(tuple(_compiler())))
        yield str(path)


def _compiler() -> list[str]:
    """Find the command that `CXX` is, else c++, g++ or clang++."""
    named = os.environ.get("CXX")
    try:
        program, *options = shlex.split(named) if named else (next(filter(shutil.which, ("c++", "g++", "clang++"))),)
    except (StopIteration, ValueError):  # none is there; a quote without its end
        program, options = "", []
    if (path := shutil.which(program)) is None:
        reason = (
            f"The environment's CXX names {named!r}, which is none."
            if named
            else "There is none: install g++ or clang."
        )
        raise RuntimeError(f"export: runtime='ort' needs a C++ compiler. {reason}")
    return [path, *options]


@functools.cache
def _library(compiler: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "filigree.cpp"), Path(folder, "filigree.so")
        source.write_bytes(SOURCE.read_bytes())
        try:
            done = subprocess.run(
                [*compiler, *_OPTIONS, "-o", library.name, source.name], cwd=folder, capture_output=True
            )
        except OSError as error:
            raise RuntimeError(f"export: {compiler[0]} cannot be run here: {error.strerror}.") from None
        if done.returncode:
            reason = one_line(done.stderr.decode(errors="replace"), 300)
            raise RuntimeError(f"export: {Path(compiler[0]).name} failed with {done.returncode}: {reason}")
        return library.read_bytes()
