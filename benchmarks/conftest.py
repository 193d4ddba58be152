"""Shared by all benchmarks: what a suite found goes to one small JSON file and one table."""

import datetime
import json
import re
from pathlib import Path

import pytest
import torch

from filigree.ops import kernels
from filigree.train import Record

RESULTS = Path(__file__).parent / "results"


class Suite:
    """Collects the rows of a suite; a row is a dict of plain values."""

    def __init__(self, name: str) -> None:
        self.name, self.rows = name, []

    def add(self, **row) -> None:
        self.rows.append(row)
        print("  " + "  ".join(f"{key}={_short(value)}" for key, value in row.items()))

    def save(self) -> None:
        record = Record.start(isa=kernels.isa())
        machine = record.machine | {"level2": _level2()}
        slug = re.sub(r"[^a-z0-9]+", "-", str(machine["cpu"]).lower()).strip("-")
        head = {"suite": self.name, "date": str(datetime.date.today()), "commit": record.commit, "dirty": record.dirty}
        lines = ",\n  ".join(json.dumps(row) for row in self.rows)
        text = json.dumps(head | {"machine": machine, "versions": record.versions}, indent=1)[:-2]
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.name}-{slug}.json").write_text(f'{text},\n "rows": [\n  {lines}\n ]\n}}\n')


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


def _short(value):
    return f"{value:.3g}" if isinstance(value, float) else value


def _level2():
    path = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    return path.read_text().strip() if path.is_file() else None
