"""Commands in forked children of a process that has torch in memory: a start costs milliseconds, not seconds."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def alone() -> None:
    """Start the script again with one thread, unless it runs so: a fork copies only the thread that calls it."""
    if any(os.environ.get(name) != value for name, value in ONE.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | ONE)


@dataclass
class Child:
    """A forked process; `output` holds what it wrote on standard output and error."""

    pid: int
    output: Path
    code: int | None = None  # its exit status, or minus the signal that ended it

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit status; one that does not end in time is killed, and that is an error."""
        ends = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > ends:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"a child did not end within {seconds:g} s; it said: {self.text()[-500:]}")
            time.sleep(0.001)
        assert self.code is not None
        return self.code

    def send(self, number: int) -> None:
        if not self.poll():
            os.kill(self.pid, number)

    def text(self) -> str:
        return self.output.read_text(errors="replace")


def fork(action: Callable[[], Any], output: Path) -> Child:
    """Run `action` in a child. Its status is that of `sys.exit`, 0 at the end, 99 after another exception."""
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("fork: this process has several threads; call alone() first.")
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, output)
    code = 99
    try:
        out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number in (1, 2):
            os.dup2(out, number)
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def filigree(*arguments: object) -> Callable[[], None]:
    """The command line with these arguments, as an action."""

    def run() -> None:
        from filigree import cli  # after the fork it is only looked up: the script has imported it

        sys.argv = ["filigree", *map(str, arguments)]
        cli.main()

    return run
