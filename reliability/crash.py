"""`make crash`: kill -9 at random moments of training, rewiring, checkpointing, compressing and saving.

Commands run in forked children that say what they do (`phases.py`). A child is killed with SIGKILL a random while into
a random phase, again and again; each time all files with final names must be whole, and the same command with
`--resume` must at last end with the weights, bit for bit, of a run that no one disturbed.

The page cache outlives a killed process: what a power cut does is not tried here (files are synced before they get
their names, folders after).
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import whole
from forked import Child, alone, filigree, fork
from kept import Line, keep
from phases import PHASES, Board, watch

import filigree as fg
from filigree.io import saving

HERE = Path(__file__).parent
TRAINING = (
    "train", "train", "rewire", "rewire", "evaluate", "checkpoint", "record", "compress", "save", "measure", "else"
)  # fmt: skip


@dataclass
class Job:
    """A command that is killed until it ends. `share` is its part of all kills."""

    name: str
    share: float
    action: Callable[[Path], Callable[[], Any]]  # of the folder to work in
    phases: tuple[str, ...]
    check: Callable[[Path], Any] = whole.check
    endless: bool = False  # it never ends by itself
    tidies: bool = False  # the command owns its folder, and clears it of what killed ones left


@dataclass
class Kills:
    """What was done, and what came of it."""

    random: random.Random
    by_phase: Counter[str] = field(default_factory=Counter)
    by_job: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)  # jobs that came to their end, and were compared
    files: int = 0  # read after kills
    cut_off: int = 0  # half-written files under temporary names, after kills
    midway: int = 0  # kills shortly after SIGTERM, while the run ended its step and saved itself
    saved: int = 0  # runs that were faster than such a kill

    def strike(self, job: Job, folder: Path, scratch: Path) -> Child | None:
        """Run the job and kill it in a random phase; its child where it came to its end before."""
        board, action = Board(), job.action(folder)

        def watched() -> None:
            watch(board)
            action()

        phase = self.random.choice(job.phases)
        terminate = phase == "train" and self.random.random() < 0.4
        child = fork(watched, scratch / "said.txt")
        time.sleep(self.random.uniform(0, 0.3))  # so that it is not always the first rewiring after a start
        while board.phase != phase and not child.poll():
            time.sleep(2e-5)
        time.sleep(self.random.uniform(0, PHASES[phase]) / 1e3)
        if terminate:
            child.send(signal.SIGTERM)
            time.sleep(self.random.uniform(0, 0.01))
        child.send(signal.SIGKILL)
        if child.wait() == 128 + signal.SIGTERM:  # it had saved itself before the kill
            self.saved += 1
        elif child.code == -signal.SIGKILL:
            self.by_phase[board.phase] += 1
            self.by_job[job.name] += 1
            self.midway += terminate
        else:
            return child
        self.cut_off += len(whole.leftovers(folder))
        self.files += job.check(folder)
        return None


def jobs(scratch: Path) -> list[Job]:
    def train(*settings: str) -> Callable[[Path], Callable[[], Any]]:
        options = [word for setting in settings for word in ("--set", setting)]
        recipe = HERE / "crash.yaml"
        return lambda folder: filigree("train", recipe, *options, "--out", folder, "--no-report", "--resume")

    source = scratch / "whole-train" / "dense-0" / "model.safetensors"

    def compress(folder: Path) -> Callable[[], Any]:
        settings = ["--set", "keep=0.5", "--data", "digits", "--samples", "300"]
        return filigree("compress", source, "ClusterPruning", *settings, "-o", folder / "small.safetensors")

    def report(folder: Path) -> Callable[[], Any]:
        return filigree("report", scratch / "whole-train", "-o", folder / "page.html")

    methods = "methods={SET: {evolution: {schedule: {kind: Constant, zeta: 0.3}}}, dense: {convert: []}}"
    return [
        Job("train", 0.5, train(), TRAINING, tidies=True),
        Job("search", 0.15, train(methods, "search={lr: [0.01, 0.03]}", "training.epochs=2"), TRAINING, tidies=True),
        Job("compress", 0.15, compress, ("compress", "save", "else")),
        Job("report", 0.05, report, ("report", "else")),
        Job("save", 0.15, lambda folder: lambda: save_for_ever(folder), ("save",), check_saved, endless=True),
    ]


def networks() -> list[Any]:
    """Two networks of another size each, converted, with weights that are the same every time."""
    trained = []
    for seed, width in enumerate((700, 900)):
        model = fg.models.mlp([64, width, 10])
        fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2), seed=seed))
        trained.append(model)
    return trained


def save_for_ever(folder: Path) -> None:
    """One network, then the other, under the same name."""
    both = networks()
    while True:
        for model in both:
            saving.save(model, folder / "model.safetensors")  # by its module, where `watch` has put its own


def check_saved(folder: Path) -> int:
    """The file is one network or the other."""
    if not (folder / "model.safetensors").exists():
        return 0
    shape = fg.load(folder / "model.safetensors").state_dict()["fc1.values"].shape
    if shape not in [model.state_dict()["fc1.values"].shape for model in networks()]:
        raise ValueError(f"{folder}: neither of the networks that are saved.")
    return whole.check(folder)


def undisturbed(job: Job, folder: Path, scratch: Path) -> Child:
    """The job, left alone until it ends."""

    def watched() -> None:
        watch(Board())
        job.action(folder)()

    child = fork(watched, scratch / "said.txt")
    child.wait()
    return child


def crash(kills: int, seed: int, minutes: float, scratch: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """`kills` kills shared out over the jobs. Returns the figures; what went wrong is under "failures"."""
    began, done, failures = time.monotonic(), Kills(random.Random(seed)), list[str]()
    for job in jobs(scratch):
        reference, folder, wanted = scratch / f"whole-{job.name}", scratch / job.name, math.ceil(job.share * kills)
        reference.mkdir()
        folder.mkdir()
        if not job.endless:
            failures += _wrong_end(job, undisturbed(job, reference, scratch))
        tries, over = 0, False
        while not (over or failures or time.monotonic() - began > 60 * minutes):
            enough, tries = done.by_job[job.name] >= wanted, tries + 1
            if job.endless and enough:
                break
            try:
                last = enough or (tries > 15 and not job.endless)  # after so many kills a run may end
                ended = undisturbed(job, folder, scratch) if last else done.strike(job, folder, scratch)
            except (ValueError, FileNotFoundError, TimeoutError) as error:
                failures.append(f"{job.name}, after kill {done.by_job[job.name]}: {error}")
                break
            if ended is not None:
                failures += _wrong_end(job, ended) + _wrong_files(job, reference, folder)
                done.ends[job.name] += 1
                shutil.rmtree(folder)
                folder.mkdir()
                tries, over = 0, enough
            say(f"{done.by_job.total()} of {kills} kills, {time.monotonic() - began:.0f} s: {job.name}")
    return {
        "kills": done.by_job.total(), "by_phase": dict(done.by_phase.most_common()), "by_job": dict(done.by_job),
        "killed_after_sigterm": done.midway, "saved_after_sigterm": done.saved, "ended_and_compared": dict(done.ends),
        "whole_files_read": done.files, "half_written_under_temporary_names": done.cut_off,
        "seconds": round(time.monotonic() - began, 1), "seed": seed, "failures": failures,
    }  # fmt: skip


def _wrong_end(job: Job, child: Child) -> list[str]:
    last_words = " ".join(child.text().split())[-300:]
    return [f"{job.name}: ended with {child.code}: {last_words}"] if child.code else []


def _wrong_files(job: Job, reference: Path, folder: Path) -> list[str]:
    wrong = [f"{name} differs from the undisturbed run's" for name in whole.differences(reference, folder)]
    wrong += [f"{file} is left over" for file in whole.leftovers(folder) if job.tidies]
    return [f"{job.name}: {what}" for what in wrong]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many, at least (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--minutes", type=float, default=15, help="the time after which it gives up (default 15)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "crash.json", help="the record")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crash-") as scratch:
        figures = crash(options.kills, options.seed, options.minutes, Path(scratch), Line())
    keep(options.out, figures)
    return int(bool(figures["failures"]) or figures["kills"] < options.kills)


if __name__ == "__main__":
    alone()
    sys.exit(main())
