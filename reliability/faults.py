"""What a run does when its surroundings fail: a full disk, a read-only folder, SIGINT and SIGTERM, no memory.

Each must end the command with its exit code and one line that says what was the matter, leave every file whole, and let
the same command with `--resume` end with the weights, bit for bit, of a run that nothing disturbed. Part of
`make crash`.

The disk is a tmpfs of a mount namespace of the script's own, which needs `unshare` and leave to use it; where that is
not given, `disk` and `readonly` are reported as not tried.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import whole
from forked import Child, alone, filigree, fork
from kept import Line, keep
from phases import Board, watch

from filigree.dynamics import Evolution
from filigree.io.storage import read_state

HERE = Path(__file__).parent
INSIDE = "FILIGREE_PRIVATE_MOUNTS"  # set in the copy of the script that has mounts of its own
SETTINGS = ["--method", "SET", "--set", "training.epochs=8", "--set", "training.batch_size=8", "--no-report"]


class Wrong(Exception):
    """It did not go as it must; the message says how."""


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


class Bench:
    """A folder for one scenario, and the run that nothing disturbed."""

    def __init__(self, scratch: Path, reference: Path) -> None:
        self.folder, self.reference = scratch / "runs", reference
        self.message, self.disk = scratch / "said.txt", scratch / "disk"
        self.checkpoint = self.folder / "SET-0" / "checkpoint.safetensors"

    def train(self, before: Callable[[], None] = lambda: None, board: Board | None = None) -> Child:
        """The training command, with something done in its process before."""

        def run() -> None:
            watch(board or Board())
            before()
            filigree("train", HERE / "crash.yaml", *SETTINGS, "--out", self.folder, "--resume")()

        return fork(run, self.message)

    def until_epoch(self, child: Child, epoch: int) -> None:
        """Wait for the checkpoint of this epoch."""
        ends = time.monotonic() + 60
        while time.monotonic() < ends and not child.poll():
            if self.checkpoint.exists() and len(read_state(self.checkpoint)["content"]["history"]) >= epoch:
                return
            time.sleep(0.001)
        raise Wrong(f"no epoch {epoch} was reached: {child.text()[-300:]}")

    def must_say(self, child: Child, code: int, *words: str) -> str:
        """The command's last line; `Wrong` unless it is its error, with these words, and the exit code is this."""
        ended, lines = child.wait(), [line for line in child.text().splitlines() if line.strip()]
        last = lines[-1] if lines else ""
        message = last.startswith("filigree: ") and all(word in last for word in words)
        expect(
            ended == code and message,
            f"expected exit code {code} and a line with {words}. Got {ended}: {last[-300:]!r}",
        )
        expect("Traceback" not in child.text(), "a traceback was shown")
        return last.replace(str(self.folder.parent), "...")

    def must_go_on(self) -> dict[str, Any]:
        """All is whole, and the run, resumed, ends as the undisturbed one."""
        files, kept = whole.check(self.folder), {}
        if self.checkpoint.exists():
            content = read_state(self.checkpoint)["content"]
            steps = content["midway"]["steps"] if content["midway"] else 0
            kept = {"epochs_kept": len(content["history"]), "steps_kept_besides": steps}
        child = self.train()
        expect(child.wait() == 0, f"resuming ended with {child.code}: {child.text()[-300:]}")
        different = whole.differences(self.reference, self.folder)
        expect(not different, f"after resuming {different} differ from the undisturbed run's")
        expect(not whole.leftovers(self.folder), "half-written files are left over")
        return {"whole_files": files} | kept | {"resumed_equal": True}


def disk(bench: Bench) -> dict[str, Any]:
    """The disk fills up while a run trains, and while a model is compressed onto an older file."""
    with mounted(bench.disk, "8m"):
        bench.folder = bench.disk / "runs"
        bench.checkpoint = bench.folder / "SET-0" / "checkpoint.safetensors"
        child = bench.train()
        bench.until_epoch(child, 2)
        fill(bench.disk / "filler")
        message = bench.must_say(child, 1, "No space left on device", "--resume")
        small, source = bench.disk / "small.safetensors", bench.reference / "SET-0" / "model.safetensors"
        (bench.disk / "filler").unlink()
        figures = bench.must_go_on()
        shutil.copy(source, small)
        before = small.read_bytes()
        fill(bench.disk / "filler")
        also = bench.must_say(compressed(bench, source, small), 1, "No space left on device")
        expect(small.read_bytes() == before, "the older file is no longer there as it was")
        expect(not whole.leftovers(bench.disk), "a half-written file is left over")
    return {"exit": 1, "said": message, "compress_said": also} | figures


def readonly(bench: Bench) -> dict[str, Any]:
    """The file system turns read-only while a run trains; then a run and a compression are begun there."""
    with mounted(bench.disk, "8m"):
        bench.folder = bench.disk / "runs"
        bench.checkpoint = bench.folder / "SET-0" / "checkpoint.safetensors"
        child = bench.train()
        bench.until_epoch(child, 2)
        while mount("-o", "remount,ro", bench.disk):  # busy while a file is open for writing
            expect(not child.poll(), "the run ended before its disk was made read-only")
        message = bench.must_say(child, 1, "Read-only file system", "--resume")
        bench.must_say(bench.train(), 2, "cannot be written to")
        source = bench.reference / "SET-0" / "model.safetensors"
        also = bench.must_say(compressed(bench, source, bench.disk / "small.safetensors"), 2, "cannot be written to")
        mount("-o", "remount,rw", bench.disk)
        figures = bench.must_go_on()
    return {"exit": 1, "said": message, "compress_said": also} | figures


def sigint(bench: Bench) -> dict[str, Any]:
    """Ctrl-C within an epoch: the step ends, the run is saved there."""
    return _asked(bench, signal.SIGINT, "interrupted")


def sigterm(bench: Bench) -> dict[str, Any]:
    """SIGTERM within an epoch: the step ends, the run is saved there."""
    return _asked(bench, signal.SIGTERM, "terminated")


def _asked(bench: Bench, number: signal.Signals, word: str) -> dict[str, Any]:
    board = Board()
    child = bench.train(board=board)
    bench.until_epoch(child, 2)
    while board.phase != "train" and not child.poll():
        time.sleep(2e-5)
    time.sleep(0.02)
    child.send(number)
    message = bench.must_say(child, 128 + number, word, "--resume")
    figures = bench.must_go_on()
    expect(figures["steps_kept_besides"] > 0, "the run was not saved within the epoch")
    return {"exit": 128 + number, "said": message} | figures


def memory(bench: Bench) -> dict[str, Any]:
    """An allocation fails in the third rewiring."""

    def starve() -> None:
        step, calls = Evolution.step, []

        def starved(self: Evolution, metrics: Any = None) -> None:
            calls.append(1)
            if len(calls) == 3:
                torch.empty(2**50)
            step(self, metrics)

        Evolution.step = starved  # type: ignore[method-assign]

    message = bench.must_say(bench.train(starve), 1, "out of memory", "tried to allocate", "--resume")
    return {"exit": 1, "said": message} | bench.must_go_on()


def worker(bench: Bench) -> dict[str, Any]:
    """A search with two processes in which the networks of one width do not fit the memory that a process may have."""

    def search(*widths: str) -> Callable[[], None]:
        def run() -> None:
            if len(widths) > 1:
                limit(2**31)
            filigree(
                "sweep", HERE / "crash.yaml", "--method", "dense", "--trials", 6, "--jobs", 2, "--out", bench.folder,
                "--set", "training.epochs=1", "--over", f"model.hidden.0={','.join(widths)}",
            )()  # fmt: skip

        return run

    message = bench.must_say(fork(search("64", "200000000"), bench.message), 1, "out of memory")
    return {"exit": 1, "said": message, "whole_files": whole.check(bench.folder)}


def compressed(bench: Bench, source: Path, target: Path) -> Child:
    settings = ["MagnitudePruning", "--set", "keep=0.5", "--data", "digits"]
    return fork(filigree("compress", source, *settings, "-o", target), bench.message)


def limit(spare: int) -> None:
    """Let this process, and those it starts, have so many bytes of address space more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + spare,) * 2)


def mount(*arguments: object) -> int:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system of this size in memory."""
    folder.mkdir()
    expect(mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder) == 0, "a tmpfs could not be mounted")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(file: Path) -> None:
    """Leave no byte on the disk."""
    with open(file, "wb", buffering=0) as filler:
        for size in (2**16, 2**12, 1):
            try:
                while True:
                    filler.write(b"\0" * size)
            except OSError:
                pass


SCENARIOS = {scenario.__name__: scenario for scenario in (disk, readonly, sigint, sigterm, memory, worker)}
NEED_MOUNTS = (disk, readonly)


def private_mounts() -> None:
    """Start the script again where its mounts are its own, if that is allowed here."""
    inside = ["unshare", "--map-root-user", "--mount"]
    if INSIDE not in os.environ and subprocess.run([*inside, "true"], capture_output=True, check=False).returncode == 0:
        os.execvpe(inside[0], [*inside, sys.executable, *sys.orig_argv[1:]], os.environ | {INSIDE: "1"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", help=f"which of {', '.join(SCENARIOS)}; by default all")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "faults.json", help="the record")
    options = parser.parse_args()
    if unknown := set(options.scenarios) - set(SCENARIOS):
        parser.error(f"there is no scenario {', '.join(unknown)}")
    line, began, found = Line(), time.monotonic(), dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        reference = Bench(Path(folder), Path())
        expect(reference.train().wait() == 0, f"the undisturbed run failed: {reference.message.read_text()[-500:]}")
        for name in options.scenarios or SCENARIOS:
            line(f"{time.monotonic() - began:.0f} s: {name}")
            (scratch := Path(folder) / name).mkdir()
            try:
                tried = SCENARIOS[name] not in NEED_MOUNTS or INSIDE in os.environ
                found[name] = SCENARIOS[name](Bench(scratch, reference.folder)) if tried else "not tried: no mounts"
            except (Wrong, TimeoutError, ValueError, OSError) as error:
                found[name] = f"failed: {error}"
    keep(options.out, {"scenarios": found, "seconds": round(time.monotonic() - began, 1)})
    return int(any(str(figures).startswith("failed") for figures in found.values()))


if __name__ == "__main__":
    private_mounts()
    alone()
    sys.exit(main())
