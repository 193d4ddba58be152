"""Moczulski 2019, chapter 3: what ACDC layers can represent, and LeNet with Fastfood."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import torch
from torch import nn

from filigree.measure.timing import inference, time_interleaved
from filigree.nn import ACDCLinear
from filigree.report import Chart
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.findings import (
    Finding,
    at_least,
    claim,
    count,
    difference,
    figure,
    judged,
    positive,
    share,
    spread,
    unprinted,
)
from filigree_papers.reproduce.reproduction import Computation, Records, Reproduction, metric

INITIAL = {"N(1, .1^2)": (1.0, 0.1), "N(0, .001^2)": (0.0, 0.001)}  # mean and deviation


def recover_operator(case: str, seed: int, quick: bool) -> Rows:
    """A dense 32 x 32 operator by ACDC of order 1 to 32 from two initial values (Fig. 3.4).

    Data as printed: X `(10000, 32)` and W uniform in [0, 1], noise of variance 1e-4. Adam with clipping, the best of a
    grid of learning rates: plain SGD diverges from order 16 on.
    """
    torch.manual_seed(seed)
    x, w = torch.rand(10_000, 32), torch.rand(32, 32)
    y = x @ w + 1e-2 * torch.randn(10_000, 32)
    steps, rates = (500, (0.005,)) if quick else (12_000, (0.002, 0.005))
    rows: Rows = []
    mean, sigma = INITIAL[case]
    for order in (1, 2, 4, 8, 16, 32):
        losses = [_recover(x, y, order, mean, sigma, rate, steps) for rate in rates]
        best = min(range(len(rates)), key=lambda i: losses[i])
        rows.append({"initial values": case, "order": order, "mean squared error": losses[best], "lr": rates[best]})
    return rows


def _recover(x: torch.Tensor, y: torch.Tensor, order: int, mean: float, sigma: float, lr: float, steps: int) -> float:
    layer = ACDCLinear(32, 32, order, bias=False, sigma=sigma, seed=1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(mean - 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order_of_samples = torch.Generator().manual_seed(2)
    for _ in range(steps):
        chosen = torch.randint(len(x), (100,), generator=order_of_samples)
        optimizer.zero_grad()
        nn.functional.mse_loss(layer(x[chosen]), y[chosen]).backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 10.0)
        optimizer.step()
        decay.step()
    with torch.no_grad():
        return float(nn.functional.mse_loss(layer(x), y))


def recovery_claim(rows: Rows) -> list[Finding]:
    """Does depth help with the right initial values, and only with them? Judged over the orders."""
    good, bad = (
        {row["order"]: row["mean squared error"] for row in rows if row["initial values"] == values}
        for values in INITIAL
    )
    if not good or not bad:
        return []
    orders = sorted(good)
    falls = [good[b] < good[a] for a, b in pairwise(orders)]
    apart = [math.log(bad[order] / good[order]) for order in orders]
    worse = f"that from N(0, .001^2) is {bad[orders[-1]]:.3g} at the last, its log more by {difference(apart)}"
    ends = f"{good[orders[0]]:.3g} to {good[orders[-1]]:.3g}"
    ours = f"with the order it falls from {ends}, in {sum(falls)} of {len(falls)} steps"
    parts = {ours: share(falls)} | judged(worse, positive, apart)
    return [claim("Moczulski 2019, Fig. 3.4", "The error of ACDC from N(1, .1^2) (printed: 16 layers suffice)", parts)]


SIDES = (256, 512, 1024, 2048, 4096)


def speed(case: str, seed: int, quick: bool) -> Rows:
    """Fig. 3.3: a square layer of each size on a batch of 128, forward: ACDC of one order against `nn.Linear`."""
    torch.manual_seed(seed)
    rows: Rows = []
    for side in SIDES[:2] if quick else SIDES:
        x = torch.randn(128, side)
        dense, acdc = nn.Linear(side, side), ACDCLinear(side, side, seed=seed)
        times = time_interleaved([inference(dense, x), inference(acdc, x)], 0.02 if quick else 0.4)
        slow, fast = (timing.median for timing in times)
        rows.append({"side": str(side), "dense ms": slow, "ACDC ms": fast, "times as fast": slow / fast})
    return rows


def speed_claim(rows: Rows) -> list[Finding]:
    """Up to 10 times faster: at the best size of ours."""
    by_side = {side: [row["times as fast"] for row in rows if row["side"] == side] for side in map(str, SIDES)}
    known = {side: ratios for side, ratios in by_side.items() if ratios}
    if not known:
        return []
    best = max(known, key=lambda side: statistics.fmean(known[side]))
    parts = judged(f"{spread(known[best])} times as fast at {best} x {best}", at_least(10), known[best])
    return [claim("Moczulski 2019, Fig. 3.3", "ACDC is up to 10 times as fast as a dense layer", parts)]


def fastfood_parameters(records: Records) -> list[Finding]:
    """Weights alone, as the document counts: ours without the biases of the whole network."""
    findings = []
    for method, printed in PARAMETERS.items():
        for runs in records.values():
            if runs.get(method):
                ours = runs[method][0].cost["parameters"] - BIASES[method]
                findings.append(count("Moczulski 2019, Table 3.1", f"{method}, weights", printed, ours))
    return findings


def reduction(records: Records) -> list[Finding]:
    """Test error against how many times fewer parameters the whole network has."""
    findings = []
    for methods in records.values():
        dense = metric(methods.get("dense", []), "test_accuracy", 100)
        for method, runs in methods.items():
            ours = metric(runs, "test_accuracy", 100)
            if method == "dense" or not dense or not ours:
                continue
            rise = [a - b for a, b in zip(dense, ours, strict=False)]
            times = methods["dense"][0].cost["parameters"] / runs[0].cost["parameters"]
            what = f"{method}, rise of the error in points, 1/{times:.1f} of the parameters"
            where, printed = RISES[method]
            beside = None if printed is None else figure(where, what, printed, rise).scaled()
            findings.append(beside or unprinted(where, f"{what}: {spread(rise)}."))
    return findings


_PRINTED = {
    method: {"test": 1 - error / 100}
    for method, error in {
        "reference": 0.87, "fastfood-1024": 0.71, "fastfood-2048": 0.71, "adaptive-1024": 0.72, "adaptive-2048": 0.73,
        "fastfood-1024-plain": 0.83, "fastfood-2048-plain": 0.90, "adaptive-1024-plain": 0.86,
        "adaptive-2048-plain": 0.92,
    }.items()
}  # fmt: skip

PARAMETERS = {"reference": 430_500, "adaptive-1024": 38_812, "adaptive-2048": 52_124}
BIASES = {"reference": 580, "adaptive-1024": 80, "adaptive-2048": 80}
# place, and rise of the error in points against the reference; None: the document does not print it in this form
RISES: dict[str, tuple[str, float | None]] = {
    "acdc-12": ("Moczulski 2019, Table 3.5", 0.67),
    "acdc-2": ("Moczulski 2019, Table 3.5", None),
    "fastfood": ("Moczulski 2019, Table 3.3", 0.31),
    "low-rank-quarter": ("Moczulski 2019, Table 3.4", None),
}  # fmt: skip


def _caffenet(recipe: str, about: str, where: str, errors: dict[str, float]) -> Reproduction:
    printed = {method: {"test": 1 - error / 100} for method, error in errors.items()}
    return Reproduction(
        recipe, f"CaffeNet on your own ILSVRC12: {about} ({where}). Weeks without a GPU.", recipe, {"imagenet": []},
        {"imagenet": printed}, where, ["training.epochs=1"], long=True,
    )  # fmt: skip


REPRODUCTIONS = [
    Computation(
        "acdc-recovery",
        "A dense 32 x 32 operator recovered by ACDC of order 1 to 32, two initial values (Moczulski 2019, Fig. 3.4).",
        recover_operator,
        list(INITIAL),
        charts=[Chart("order", "mean squared error", ["initial values"], "error by order", log=True)],
        claims=[recovery_claim],
    ),
    Computation(
        "acdc-speed", "ACDC against dense layers of 256 to 4096 units, batch 128, forward (Moczulski 2019, Fig. 3.3).",
        speed, ["forward"], seeds=(0, 1, 2), claims=[speed_claim],
        charts=[Chart("side", "times as fast", [], "times as fast as a dense layer", log=True)],
        notes=("Measured against torch's dense layer; the document's is against one at the processor's peak.",),
    ),
    Reproduction(
        "fastfood-lenet",
        "LeNet on MNIST with Fastfood 1024 and 2048, random and adaptive, with and without dropout "
        "(Moczulski 2019, Table 3.1).",
        "fastfood-lenet",
        {"lenet": []},
        {"lenet": _PRINTED},
        "Moczulski 2019, Table 3.1",
        ["training.epochs=1"],
        [fastfood_parameters],
    ),
    Reproduction(
        "acdc-cifar",
        "A small AlexNet on CIFAR-10, its large layers as 12 ACDC layers, Fastfood or low rank "
        "(after Moczulski 2019, 3.4 and 3.5).",
        "acdc-cifar",
        {"alexnet": []},
        quick=["training.epochs=1", "data.name=orl", "data.validation=0.2"],
        claims=[reduction],
        notes=("The document's figures are of CaffeNet on ILSVRC12: see `caffenet-acdc` and the others like it.",),
    ),
    _caffenet("caffenet-fastfood", "Fastfood of 16,384 or 32,768 features", "Moczulski 2019, Table 3.3",
              {"reference": 42.59, "random-16": 46.88, "random-32": 46.63, "adaptive-16": 42.90, "adaptive-32": 41.93}),
    _caffenet("caffenet-low-rank", "matrices of low rank", "Moczulski 2019, Table 3.4",
              {"svd-half": 43.61, "svd-quarter": 46.12, "adaptive-32-rank-600": 42.61}),
    _caffenet("caffenet-acdc", "12 ACDC layers", "Moczulski 2019, Table 3.5", {"acdc-12": 43.26}),
]  # fmt: skip
