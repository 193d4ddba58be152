"""Fuzz the loaders with atheris, one process a target, and keep the corpus and a record.

    python fuzz/run.py --runs 1000000 --seconds 3600     # each target until one of both is reached
    python fuzz/run.py --only recipe --runs 20000

The corpus in `fuzz/corpus/NAME` is where each begins; what new ground its inputs reach is added to it, the smallest
ones first, as long as it stays small. Results are appended to `fuzz/results.json`. The exit code is 1 if a target
crashed or raised what its loader does not document; the input that did it is in `build/fuzz/NAME`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import targets

from filigree.io.storage import write_json
from filigree.train import Record

HERE = Path(__file__).parent
CORPUS, RESULTS, WORK = HERE / "corpus", HERE / "results.json", HERE.parent / "build" / "fuzz"
MOST = 16 << 10  # bytes that a target's corpus may grow to


def fuzz(name: str, runs: int, seconds: int, seed: int) -> dict[str, Any]:
    """Run a target; what came of it."""
    work, kept = WORK / name, CORPUS / name
    shutil.rmtree(work, ignore_errors=True)
    (work / "corpus").mkdir(parents=True)
    done = atheris(name, work, f"-runs={runs}", f"-max_total_time={seconds}", f"-seed={seed}", "-print_final_stats=1",
                   "-max_len=40000", "-timeout=60", "-rss_limit_mb=6000", str(work / "corpus"), str(kept))  # fmt: skip
    matches = re.findall(r"^Done (\d+) runs in (\d+) second", done.stderr, re.M)  # missing after a crash
    executions, seconds = map(int, matches[-1]) if matches else (0, 0)
    left = [file.name for file in work.iterdir() if file.is_file()]
    slow = [name for name in left if name.startswith("slow-unit")]  # above 10 seconds, below the limit
    crashes = [name for name in left if name not in slow]
    if done.returncode or crashes:
        print(done.stderr[-4000:], file=sys.stderr)
    else:
        grow(name, work, kept)
    return {
        "target": name, "executions": executions, "seconds": seconds,
        "per_second": round(executions / max(seconds, 1)), "crashes": len(crashes) or int(done.returncode != 0),
        "slow": len(slow),
    }  # fmt: skip


def grow(name: str, work: Path, kept: Path) -> None:
    """Add inputs that reach new ground to the corpus, the smallest first, up to its size."""
    (work / "merged").mkdir()
    atheris(name, work, "-merge=1", str(work / "merged"), str(kept), str(work / "corpus"))
    size = sum(file.stat().st_size for file in kept.iterdir())
    for file in sorted((work / "merged").iterdir(), key=lambda file: (file.stat().st_size, file.name)):
        if not (kept / file.name).exists() and (size := size + file.stat().st_size) <= MOST:
            shutil.copy(file, kept / file.name)


def atheris(name: str, work: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "harness.py"), name, f"-artifact_prefix={work}/", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000_000, help="executions of each target")
    parser.add_argument("--seconds", type=int, default=3600, help="time for each target")
    parser.add_argument("--only", action="append", choices=list(targets.TARGETS), help="this target; repeatable")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    targets.write_seeds(CORPUS)
    here = Record.start()
    where = {"commit": here.commit, "dirty": here.dirty, "date": here.started, "cpu": here.machine["cpu"]}
    rows = []
    for name in arguments.only or targets.TARGETS:
        rows.append(row := fuzz(name, arguments.runs, arguments.seconds, arguments.seed) | where)
        earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        write_json(RESULTS, [*earlier, row])
        print(
            f"{name:12} {row['executions']:>10,} executions, {row['per_second']:>6,} a second, {row['crashes']} crashes"
        )
    return int(any(row["crashes"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
