"""004, chapter 3: what ACDC layers can represent, and LeNet with Fastfood."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from filigree.nn import ACDCLinear
from filigree.report import Chart
from filigree.reproduce.reproduction import Computation, Records, Reproduction, metric

INITIAL = {"N(1, .1^2)": (1.0, 0.1), "N(0, .001^2)": (0.0, 0.001)}  # mean and deviation


def recover_operator(case: str, seed: int, quick: bool) -> list[dict[str, Any]]:
    """A dense 32 x 32 operator by ACDC of order 1 to 32 from two initial values (Fig. 3.4).

    Data as printed: X `(10000, 32)` and W uniform in [0, 1], noise of variance 1e-4. Adam with clipping, the best of a
    grid of learning rates: plain SGD diverges from order 16 on.
    """
    torch.manual_seed(seed)
    x, w = torch.rand(10_000, 32), torch.rand(32, 32)
    y = x @ w + 1e-2 * torch.randn(10_000, 32)
    steps, rates = (500, (0.005,)) if quick else (12_000, (0.002, 0.005))
    rows = []
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
        places = torch.randint(len(x), (100,), generator=order_of_samples)
        optimizer.zero_grad()
        nn.functional.mse_loss(layer(x[places]), y[places]).backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 10.0)
        optimizer.step()
        decay.step()
    with torch.no_grad():
        return float(nn.functional.mse_loss(layer(x), y))


def recovery_claim(rows: list[dict[str, Any]]) -> str:
    """Does depth help with the right initial values, and only with them?"""
    good = [row["mean squared error"] for row in rows if row["initial values"].startswith("N(1")]
    bad = [row["mean squared error"] for row in rows if row["initial values"].startswith("N(0")]
    if not good or not bad:
        return "Both initial values are needed for the claim."
    falls = all(later <= earlier * 1.05 for earlier, later in pairwise(good))
    return (
        f"From N(1, .1^2) the error {'falls' if falls else 'does not always fall'} with the order, {good[0]:.3g} to "
        f"{good[-1]:.3g}; from N(0, .001^2) it ends at {bad[-1]:.3g} at order 32 (printed: 16 layers suffice)."
    )


def errors(records: Records) -> str:
    """Test errors in percent, as the document prints them."""
    parts = []
    for runs in records.values():
        for method, its in runs.items():
            found = metric(its, "test_accuracy")
            if found:
                printed = _PRINTED.get(method, {}).get("test")
                beside = "" if printed is None else f" (printed {100 * (1 - printed):.2f})"
                parts.append(f"{method} {100 * (1 - sum(found) / len(found)):.2f}{beside}")
    return "Test error, %: " + ", ".join(parts) + "."


def reduction(records: Records) -> str:
    """Test error against how many times fewer parameters the whole network has."""
    parts = []
    for runs in records.values():
        dense = [run.cost["parameters"] for run in runs.get("dense", []) if run.cost]
        for method, its in runs.items():
            found = metric(its, "test_accuracy")
            if found and dense and its[0].cost:
                times = dense[0] / its[0].cost["parameters"]
                parts.append(f"{method} {100 * (1 - sum(found) / len(found)):.2f} at 1/{times:.1f}")
    return "Test error, %, at this share of the parameters: " + ", ".join(parts) + "."


_PRINTED = {
    method: {"test": 1 - error / 100}
    for method, error in {
        "reference": 0.87, "fastfood-1024": 0.71, "fastfood-2048": 0.71, "adaptive-1024": 0.72, "adaptive-2048": 0.73,
        "fastfood-1024-plain": 0.83, "fastfood-2048-plain": 0.90, "adaptive-1024-plain": 0.86,
        "adaptive-2048-plain": 0.92,
    }.items()
}  # fmt: skip

REPRODUCTIONS = [
    Computation(
        "acdc-recovery",
        "A dense 32 x 32 operator recovered by ACDC of order 1 to 32, two initial values (004, Fig. 3.4).",
        recover_operator,
        list(INITIAL),
        charts=[Chart("order", "mean squared error", ["initial values"], "error by order", log=True)],
        claims=[recovery_claim],
    ),
    Reproduction(
        "fastfood-lenet",
        "LeNet on MNIST with Fastfood 1024 and 2048, random and adaptive, with and without dropout (004, table 3.1).",
        "fastfood-lenet",
        {"lenet": []},
        {"lenet": _PRINTED},
        ["training.epochs=1"],
        [errors],
        ("Parameters as printed: 38,812 and 52,124 against 430,500 (weights only; a test builds and counts them).",),
    ),
    Reproduction(
        "acdc-cifar",
        "A small AlexNet on CIFAR-10, its large layers as 12 ACDC layers, Fastfood or low rank (after 004, 3.4-3.5).",
        "acdc-cifar",
        {"alexnet": []},
        {"alexnet": {}},
        ["training.epochs=1"],
        [reduction],
        ("The document's figures are of CaffeNet on ILSVRC12: `caffenet-acdc` and its kin, on a user's own copy.",),
    ),
]
