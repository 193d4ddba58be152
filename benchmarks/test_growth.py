"""Multilayer perceptrons of constant fan-in 20, 10^3 to 10^6 units a layer: time and memory against the units.

Goal: an exponent of at most 1.2 over the whole range, 1.05 from 10^5 to 10^6, and a step with rewiring at 3 x 10^6.
"""

import json
import math
import subprocess
import sys

WIDTHS = [1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
ONE = r"""
import json, re, statistics, sys, time
import torch
import filigree as fg
from filigree.measure.cost import training_step
from filigree.ops import kernels

kernels.flush_denormals(True)
def memory(which):  # of this program's image alone: getrusage would count the one it was forked from
    return int(re.search(which + r":\s+(\d+) kB", open("/proc/self/status").read())[1]) / 1024

empty, began, n = memory("VmRSS"), time.perf_counter(), int(sys.argv[1])
with torch.device("meta"):
    model = fg.models.mlp([784, n, n, n, 10])
fg.convert_(model, fg.Sparse(fg.ConstantFanIn(20)))
build = time.perf_counter() - began
optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, fused=True)
evolution = fg.Evolution(model, optimizer, 0.3)
x, y = torch.randn(128, 784), torch.randint(0, 10, (128,))

def step():
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()

def timed(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

step(), step()
times, end = [], time.perf_counter() + 2
while time.perf_counter() < end or len(times) < 5:
    times.append(timed(step))
peak = memory("VmHWM")
rewire = timed(evolution.step)
loss_after = float(torch.nn.functional.cross_entropy(model(x), y))
assert loss_after == loss_after
print(json.dumps({"units": n, "connections": sum(l.nnz for l in evolution.layers.values()), "build_s": build,
    "step_ms": statistics.median(times) * 1e3, "peak_mb": peak - empty, "rewire_s": rewire}))
"""


def test_growth(suite, benchmark):
    rows = [
        json.loads(
            subprocess.run([sys.executable, "-c", ONE, str(n)], capture_output=True, check=True, text=True).stdout
        )
        for n in WIDTHS
    ]
    for row in rows:
        suite.add(**row)
    for first, last, goal in ((0, -1, 1.2), (-3, -1, 1.05)):
        for key in ("step_ms", "peak_mb"):
            exponent = _exponent(rows[first : len(rows) if last == -1 else last], key)
            suite.add(range=[rows[first]["units"], rows[last]["units"]], of=key, exponent=exponent, goal=goal)
    benchmark.pedantic(lambda: None, rounds=1)


def _exponent(rows, key):
    """The slope of a straight line through the logarithms."""
    x, y = ([math.log(row[k]) for row in rows] for k in ("units", key))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
