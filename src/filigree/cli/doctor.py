"""`filigree doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from filigree import data
from filigree.cli.output import tell
from filigree.convert import convert_
from filigree.measure.timing import inference, time_interleaved
from filigree.nn.sparse.sparse import Sparse
from filigree.ops import kernels
from filigree.optional import DISTRIBUTION
from filigree.topology import ErdosRenyi

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MAPS = Path("/proc/self/maps")
_EXTRAS = ("sklearn", "onnx", "onnxruntime", "plotly", "optuna", "accelerate", "lightning", "transformers", "pyarrow")


@dataclass(frozen=True)
class Finding:
    """What was found of a subject; `advice` says what is slow or absent, why, and what helps."""

    subject: str
    text: str
    advice: str = ""


def doctor() -> None:
    """Say what filigree runs with on this machine, what is slow there and why; for reports of problems too."""
    findings = [
        _versions(), _instruction_set(kernels.isa(), kernels.isas(), platform.machine(), kernels.uses_amx()),
        _pools(_read(_MAPS)),
        _threads(torch.get_num_threads(), _cores(), _read(_QUOTA), os.environ.get("OMP_NUM_THREADS")),
        _huge_pages(_read(_HUGE_PAGES)), _compiler(), _packages(), _data(), _speed(),
    ]  # fmt: skip
    for finding in findings:
        tell(f"{'look' if finding.advice else 'ok':5}{finding.subject:19}{finding.text}")
        if finding.advice:
            tell(f"{'':24}{finding.advice}")


def _versions() -> Finding:
    try:
        own = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        own = "from a source tree"
    build = "CUDA" if torch.version.cuda else "CPU"
    python, system = platform.python_version(), platform.platform()
    return Finding(
        "versions",
        f"filigree {own}, Python {python}, torch {torch.__version__} ({build} build), {system}",
    )


def _instruction_set(chosen: str, present: list[str], machine: str, amx: bool = False) -> Finding:
    if chosen == "none":
        return Finding(
            "instruction set", "no compiled kernels", "Sparse layers are slow: docs/machines.md says how to build them."
        )
    text = f"{chosen}{' and AMX for bytes' if amx else ''}; this processor runs {', '.join(present)}"
    best = next((isa for isa in ("avx512", "avx2", "neon") if isa in present), "portable")
    if chosen != best:
        return Finding("instruction set", text, f"FILIGREE_ISA chose {chosen}; without it {best} is used.")
    if best == "portable":
        return Finding("instruction set", text, f"{machine} has no kernels of its own: sparse layers are slow.")
    if best == "avx2":
        return Finding("instruction set", text, "With AVX-512 sparse layers gain somewhat more: docs/performance.md.")
    return Finding("instruction set", text)


def _pools(maps: str) -> Finding:
    runtimes = sorted(set(re.findall(r"/\S*/(lib(?:gomp|omp|iomp5)[\w.-]*\.so[\w.]*)", maps)))
    text = ", ".join(runtimes) or "none found"
    if len(runtimes) > 1:
        why = "Each has threads of its own, which compete. Import torch and filigree first, and set OMP_NUM_THREADS."
        return Finding("OpenMP pools", text, why)
    return Finding("OpenMP pools", text)


def _threads(threads: int, cores: int, quota: str, wanted: str | None) -> Finding:
    text = f"{threads} threads on {cores} processors{f', OMP_NUM_THREADS={wanted}' if wanted else ''}"
    limit, _, period = quota.strip().partition(" ")
    if limit.isdecimal() and period.isdecimal() and int(limit) / int(period) < threads:
        share = int(limit) / int(period)
        advice = f"The container has {share:.3g} processors: threads wait. Set OMP_NUM_THREADS={max(1, int(share))}."
        return Finding("threads", text, advice)
    if threads > cores:
        return Finding("threads", text, f"More threads than processors: they wait. torch.set_num_threads({cores}).")
    if threads < cores // 2:
        reason = "OMP_NUM_THREADS" if wanted else "torch.set_num_threads"
        return Finding("threads", text, f"{cores - threads} processors are not used: {reason} says so.")
    return Finding("threads", text)


def _huge_pages(setting: str) -> Finding:
    chosen = re.search(r"\[(\w+)\]", setting)
    if chosen is None:
        return Finding("huge pages", "not known here")
    if chosen[1] == "never":
        advice = "Large sparse layers read at random, and walk page tables: echo madvise > " + str(_HUGE_PAGES)
        return Finding("huge pages", chosen[1], advice)
    return Finding("huge pages", chosen[1])


def _compiler() -> Finding:
    path = shutil.which(os.environ.get("CXX", "c++"))
    if path is None:
        return Finding("C++ compiler", "none", "Needed to build filigree from source only (Debian: apt install g++).")
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("C++ compiler", path, f"It does not run ({type(error).__name__}); only a build needs it.")
    return Finding("C++ compiler", output.partition("\n")[0] or path)


def _packages() -> Finding:
    installed = {name: _installed(name) for name in _EXTRAS}
    absent = [name for name, there in installed.items() if not there]
    text = ", ".join(name for name, there in installed.items() if there) or "none"
    return Finding("optional packages", text + (f"; absent: {', '.join(absent)}" if absent else ""))


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _data() -> Finding:
    present = [name for name in data.names() if data.describe(name).present]
    where = os.environ.get("FILIGREE_DATA", "FILIGREE_DATA is not set")
    if "FILIGREE_DATA" in os.environ and not Path(where).is_dir():
        return Finding("data", where, "There is no such folder: unset FILIGREE_DATA to download data sets.")
    return Finding("data", f"{where}; present: {', '.join(present)}")


def _speed() -> Finding:
    """One layer, 2% of its connections, beside the dense one: about 0.5 s."""
    dense, x = nn.Linear(2000, 2000).eval(), torch.randn(128, 2000)
    model = nn.Sequential(nn.Linear(2000, 2000)).eval()
    convert_(model, Sparse(ErdosRenyi(density=0.02)))
    times = time_interleaved([inference(dense, x), inference(model, x)], 0.2)
    ratio = times[0].median / times[1].median
    text = (
        f"2000 x 2000, batch 128: dense {times[0].median:.3g} ms, 2% sparse {times[1].median:.3g} ms, {ratio:.1f} times"
    )
    if ratio < 2:
        return Finding("speed", text, "Sparse layers gain little here: look above; is the machine busy?")
    return Finding("speed", text)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
