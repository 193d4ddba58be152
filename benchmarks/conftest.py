"""Shared by all benchmarks: what a suite found goes to one small JSON file and one table.

There is a file a suite, processor and instruction set: `FILIGREE_ISA=avx2 ATEN_CPU_CAPABILITY=avx2` leaves a record
beside that of AVX-512, and `FILIGREE_AMX=0` one of a processor without AMX, which `fg.optimize_` alone uses. Torch's
dense products come from MKL and oneDNN, which choose for themselves: the record names the variables that tell them,
where they are set (`MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2`).
"""

import datetime
import importlib.metadata
import json
import os
import re
from pathlib import Path

import pytest
import torch

from filigree.ops import kernels
from filigree.train import Record

RESULTS = Path(__file__).parent / "results"
CHOICES = ("FILIGREE_ISA", "FILIGREE_AMX", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")


class Suite:
    """Collects the rows of a suite; a row is a dict of plain values."""

    def __init__(self, name: str) -> None:
        self.name, self.rows = name, []
        self.networks = []  # in their order, of a suite whose record holds networks that were tried in several runs
        self.keys = ("network",)  # what tells which of its rows a run replaces; the first is one of `networks`

    def add(self, **row) -> None:
        now = datetime.datetime.now().isoformat(timespec="minutes")
        self.rows.append(row | {"date": now} if self.networks else row)
        print("  " + "  ".join(f"{key}={_short(value)}" for key, value in row.items()))

    @property
    def path(self) -> Path:
        """The file of the record."""
        machine = Record.start(isa=kernels.isa()).machine
        amx = "amx" if kernels.uses_amx() and self.name.startswith("optimize") else ""
        slug = re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']} {machine['isa']} {amx}".lower()).strip("-")
        return RESULTS / f"{self.name}-{slug}.json"

    def _key(self, row: dict) -> tuple:
        return tuple(row.get(key) for key in self.keys)

    def save(self) -> None:
        record = Record.start(isa=kernels.isa())
        machine = record.machine | {
            "torch_isa": torch.backends.cpu.get_cpu_capability(), "level2": _cache(2), "level3": _cache(3),
            "amx": kernels.uses_amx(),
            "environment": {name: os.environ[name] for name in CHOICES if name in os.environ},
        }  # fmt: skip
        head = {"suite": self.name, "date": str(datetime.date.today()), "commit": record.commit, "dirty": record.dirty}
        rows, tried = list(self.rows), {self._key(row) for row in self.rows}
        if self.networks and self.path.is_file():
            stored = json.loads(self.path.read_text())
            others = [row for row in stored["rows"] if self._key(row) not in tried]
            rows += [{"date": stored["date"]} | row for row in others]
            rows.sort(key=lambda row: self.networks.index(row[self.keys[0]]))
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        text = json.dumps(head | {"machine": machine, "versions": record.versions | _peers()}, indent=1)[:-2]
        RESULTS.mkdir(exist_ok=True)
        self.path.write_text(f'{text},\n "rows": [\n  {lines}\n ]\n}}\n')


@pytest.fixture(scope="module")
def suite(request):
    suite_of_module = Suite(request.module.__name__.removeprefix("test_"))
    print(f"\n{suite_of_module.name}: {request.module.__doc__.strip().splitlines()[0]}")
    yield suite_of_module
    if suite_of_module.rows:
        suite_of_module.save()


@pytest.fixture(autouse=True)
def _quiet():
    torch.manual_seed(0)
    kernels.flush_denormals(True)
    yield
    kernels.flush_denormals(False)


def _peers():
    """The versions of the peers that are installed."""
    installed = {distribution.name.lower(): distribution.version for distribution in importlib.metadata.distributions()}
    return {
        name: installed[name]
        for name in ("sparseprop", "sparselab", "timm", "torch-pruning", "transformers")
        if name in installed
    }


def _short(value):
    return f"{value:.3g}" if isinstance(value, float) else value


def _cache(level):
    """The size of a core's cache of data, as Linux tells it: "1024K"; None where it is not known."""
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level_of_cache, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:  # virtual machines may leave sizes out
            continue
        if level_of_cache == str(level) and kind != "Instruction":
            return size
    return None
