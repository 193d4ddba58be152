"""`import filigree` against `import torch` alone: fresh interpreters in turn, with bytecode compiled as pip does it."""

import os
import statistics
import subprocess
import sys

CODE = """
import time
wall, processor = time.perf_counter(), time.process_time()
import {module}
print(time.perf_counter() - wall, time.process_time() - processor)
"""
MODULES = ("torch", "filigree")
RUNS = 15


def _seconds(module, cache):
    """Seconds by the clock and of the processor."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(
        [sys.executable, "-c", CODE.format(module=module)], capture_output=True, text=True, check=True,
        env=environment | {"PYTHONPYCACHEPREFIX": str(cache)},
    )  # fmt: skip
    return tuple(map(float, run.stdout.split()))


def test_import_time(suite, benchmark, tmp_path):
    for module in MODULES:  # this writes the bytecode
        _seconds(module, tmp_path)
    runs = [[_seconds(module, tmp_path) for module in MODULES] for _ in range(RUNS)]
    medians = {}
    for index, module in enumerate(MODULES):
        wall, processor = zip(*(run[index] for run in runs), strict=True)
        low, *_, high = statistics.quantiles(wall, n=10)
        medians[module] = statistics.median(wall)
        suite.add(imports=module, seconds=medians[module], low=low, high=high,
                  processor_seconds=statistics.median(processor))  # fmt: skip
    more = [filigree[0] - torch[0] for torch, filigree in runs]
    low, *_, high = statistics.quantiles(more, n=10)
    suite.add(imports="filigree - torch", seconds=medians["filigree"] - medians["torch"], low=low, high=high, goal=0.3)
    benchmark.pedantic(lambda: _seconds("filigree", tmp_path), rounds=1)
