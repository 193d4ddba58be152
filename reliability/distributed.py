"""Two processes under `accelerate launch` (gloo) train one sparse network, against one process with the doubled batch.

By SET and by RigL: topologies are equal in both processes after every rewiring, by hash, and those of the one process;
weights are equal within rounding. Then a process is killed: the other must end with a message, and the run, resumed,
must end like the undisturbed one, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from kept import keep

import filigree as fg
from filigree.dynamics.evolution import Evolvable
from filigree.io.storage import read_state, write_json, write_state
from filigree.train import FitState, seed_everything

HERE = Path(__file__).parent
BATCH = 48  # over both processes: 24 samples each


class Hashes:
    """A hook: a hash of each layer's connections after every epoch; kept in the checkpoint."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def on_epoch_end(self, state: FitState) -> None:
        layers = [module for module in state.model.modules() if isinstance(module, Evolvable)]
        self.seen.append([hashlib.sha256(layer.flat_indices().numpy().tobytes()).hexdigest() for layer in layers])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = [list(row) for row in state["seen"]]


def train(folder: Path, grow: Any, resume: bool, die: int | None) -> None:
    """What each process does. In step `die` the last of them is killed."""
    torch.set_num_threads(1)
    seed_everything(0)
    rank = os.environ.get("RANK", "0")
    model = fg.models.mlp([64, 120, 120, 10]).double()
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    evolution = fg.Evolution(model, optimizer, fg.Constant(0.3), epochs=5, grow=grow)
    if die is not None:  # the launcher, which sees the death too, may end the other before it has said what happened
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    data, hashes = fg.data.load("digits", seed=0).train, Hashes()

    def killed(state: FitState) -> None:
        if state.step == die and rank == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    class Die:
        on_step_end = staticmethod(killed)

    fg.fit(
        model, (data.x.double(), data.y), optimizer=optimizer, epochs=5, batch_size=BATCH,
        callbacks=[evolution, hashes, Die()], checkpoint=folder, record=folder, resume=resume, progress=False,
    )  # fmt: skip
    write_state(folder / f"rank{rank}.safetensors", dict(model.state_dict()))
    write_json(folder / f"hashes{rank}.json", hashes.seen)


def run(processes: int, folder: Path, grow: str, *more: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    # `--multi_gpu` is what has the launcher start several processes; told to use the CPU, they talk by gloo.
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", str(processes),
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
              "--num_cpu_threads_per_process", "1"]  # fmt: skip
    command = [sys.executable, *(launch if processes > 1 else []), __file__, "--worker", str(folder), "--grow", grow]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "FILIGREE_DEBUG": "1", "ACCELERATE_USE_CPU": "true"
    }  # fmt: skip
    return subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=300, check=False)


def apart(one: Path, other: Path) -> tuple[float, float]:
    """The largest difference of two networks' values, and the largest value."""
    a, b = read_state(one), read_state(other)
    floats = [name for name in a if a[name].is_floating_point()]
    if any(not torch.equal(a[name], b[name]) for name in a if name not in floats):
        return float("inf"), 1.0  # other connections
    return max(float((a[n] - b[n]).abs().max()) for n in floats), max(float(a[n].abs().max()) for n in floats)


def compare(scratch: Path, grow: str) -> dict[str, Any]:
    """Two processes and one; then two of which one dies, and which are resumed."""
    one, two, dead = (scratch / f"{grow}-{name}" for name in ("one", "two", "dead"))
    for processes, folder in ((1, one), (2, two)):
        done = run(processes, folder, grow)
        if done.returncode:
            raise RuntimeError(f"{processes} processes ended with {done.returncode}: {done.stderr[-2000:]}")
    hashes = [json.loads((folder / f"hashes{r}.json").read_text()) for folder, r in ((one, 0), (two, 0), (two, 1))]
    difference, largest = apart(one / "rank0.safetensors", two / "rank0.safetensors")
    ranks_apart, _ = apart(two / "rank0.safetensors", two / "rank1.safetensors")

    began = time.monotonic()
    died = run(2, dead, grow, "--die", "70")  # in the third epoch of 25 steps
    seconds = time.monotonic() - began
    message = next((line for line in died.stderr.splitlines() if "lost another process" in line), "")
    kept = len(read_state(dead / "checkpoint.safetensors")["content"]["history"])
    resumed = run(2, dead, grow, "--resume")
    again = apart(two / "rank0.safetensors", dead / "rank0.safetensors")[0] if not resumed.returncode else None
    return {
        "rewirings": len(hashes[0]) - 1, "hashes_equal_on_both_ranks": hashes[1] == hashes[2],
        "hashes_equal_to_one_process": hashes[0] == hashes[1], "weights_of_the_ranks_apart": ranks_apart,
        "weights_apart_from_one_process": difference, "largest_weight": largest,
        "dead_rank": {
            "exit": died.returncode, "seconds_until_the_launcher_ended": round(seconds, 1), "message": message.strip(),
            "epochs_kept": kept, "resumed_exit": resumed.returncode, "resumed_apart_from_undisturbed": again,
        },
    }  # fmt: skip


def failures(figures: dict[str, Any]) -> list[str]:
    """What must hold and does not."""
    dead = figures["dead_rank"]
    wrong = {
        "the ranks' topologies differ": not figures["hashes_equal_on_both_ranks"],
        "the topology is not that of one process": not figures["hashes_equal_to_one_process"],
        "the ranks' weights differ": figures["weights_of_the_ranks_apart"] != 0,
        "the weights are not those of one process": not figures["weights_apart_from_one_process"] < 1e-9,
        "a dead rank did not end the launcher with an error": dead["exit"] == 0,
        "a dead rank was not reported": not dead["message"],
        "the last whole checkpoint is not that of epoch 2": dead["epochs_kept"] != 2,
        "the resumed run is not the undisturbed one": dead["resumed_apart_from_undisturbed"] != 0,
    }
    return [what for what, holds in wrong.items() if holds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grow", choices=("random", "gradient"), help="only this growth; by default both in turn")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "distributed.json", help="the record")
    for name, kind in (("--worker", Path), ("--die", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        train(arguments.worker, arguments.grow, arguments.resume, arguments.die)
        return 0
    runs, began = dict[str, Any](), time.monotonic()
    for grow in (arguments.grow,) if arguments.grow else ("random", "gradient"):
        with tempfile.TemporaryDirectory(prefix="distributed-") as scratch:
            print(f"growth: {grow}", file=sys.stderr, flush=True)
            runs[grow] = compare(Path(scratch), grow)
    wrong = [f"{grow}: {what}" for grow, figures in runs.items() for what in failures(figures)]
    keep(arguments.out, {"runs": runs, "failures": wrong, "seconds": round(time.monotonic() - began, 1)})
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
