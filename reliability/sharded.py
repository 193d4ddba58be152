"""A sparse layer of 10^7 inputs and 10^7 outputs: whole in one process, and its rows divided over two (gloo).

Both train the same layer, of about 10 connections a unit, on the same samples; losses must agree. Memory is each
process's resident set above that of the interpreter with torch: the largest while the layer is built, and the largest
while it is trained. A step is forward, backward (with the gradient of the input, as of a layer inside a network) and
SGD with momentum. `--processes 1`, then `--processes 2` measure one after the other.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from kept import keep

import filigree as fg
from filigree.ops import kernels

HERE = Path(__file__).parent


def memory(kind: str) -> int:
    """`VmHWM`, the largest resident set so far, or `VmRSS`, that of now, in MiB."""
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(kind)) >> 10


def forget_peak() -> None:
    """Give free memory back to the system, and begin `VmHWM` anew."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def work(units: int, epsilon: float, batch: int, steps: int, divided: bool) -> None:
    """What each process does: it prints its figures."""
    if divided:
        torch.distributed.init_process_group("gloo")
        torch.distributed.barrier()
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # which loads what optimizers need
    forget_peak()
    before = memory("VmRSS")
    began = time.perf_counter()
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(units, units))
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(epsilon=epsilon), sharded=divided))
    built = time.perf_counter() - began
    built_peak = memory("VmHWM") - before
    forget_peak()
    held = memory("VmRSS") - before
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0, momentum=0.9, fused=True)
    torch.manual_seed(0)
    x = torch.randn(batch, units).requires_grad_()
    seconds, losses = [], []
    for _ in range(steps):
        began = time.perf_counter()
        optimizer.zero_grad()
        x.grad = None
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
    print(json.dumps({
        "connections": sum(m.nnz for m in model.modules() if hasattr(m, "nnz")), "built_seconds": round(built, 1),
        "built_peak_mib": built_peak, "held_mib": held, "trained_peak_mib": memory("VmHWM") - before,
        "step_seconds": round(statistics.median(seconds[1:]), 2), "losses": losses,
    }))  # fmt: skip
    if divided:
        torch.distributed.destroy_process_group()


def run(processes: int, arguments: list[str]) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if processes > 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes),
                        "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    command = [sys.executable, __file__, "--worker", str(processes), *arguments]
    started = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)} if processes > 1 else environment,
                         stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"{processes} processes ended with {[process.returncode for process in started]}")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=10_000_000)
    parser.add_argument("--epsilon", type=float, default=5.0, help="10 connections a unit are epsilon=5")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sharded.json", help="the record")
    parser.add_argument(
        "--processes", type=int, choices=(1, 2), help="only with so many; the record keeps the other run"
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.units, arguments.epsilon, arguments.batch, arguments.steps, arguments.worker > 1)
        return 0
    given = [f"--{name}={getattr(arguments, name)}" for name in ("units", "epsilon", "batch", "steps")]
    settings = {name: getattr(arguments, name) for name in ("units", "epsilon", "batch", "steps")}
    record = json.loads(arguments.out.read_text()) if arguments.processes and arguments.out.is_file() else {}
    runs = record["runs"] if record.get("settings") == settings else {}
    for processes in (arguments.processes,) if arguments.processes else (1, 2):
        print(f"{processes} process(es)", file=sys.stderr, flush=True)
        runs[str(processes)] = run(processes, given)
    apart, wrong = None, []
    if len(runs) == 2:
        whole, shards = runs["1"][0], runs["2"]
        apart = max(abs(a / b - 1) for a, b in zip(whole["losses"], shards[0]["losses"], strict=True))
        same = apart < 1e-4 and sum(each["connections"] for each in shards) == whole["connections"]
        wrong = [] if same else ["they differ"]
    keep(arguments.out, {"settings": settings, "isa": kernels.isa(), "runs": runs, "losses_apart": apart,
                         "failures": wrong})  # fmt: skip
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
