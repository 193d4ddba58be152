"""Keller et al.: quantisation by sampling, and a constant number of inputs to each unit."""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from filigree import data, models
from filigree.compress import MonteCarlo, RoundToNearest
from filigree.compress.weight_sampling import sample
from filigree.measure.cost import measure
from filigree.report import Chart
from filigree.train import seed_everything
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.findings import (
    Finding,
    Verdict,
    at_least,
    claim,
    equal,
    figure,
    judged,
    spread,
    unprinted,
)
from filigree_papers.reproduce.reproduction import Computation, Records, Reproduction, metric
from filigree_papers.reproduce.steps import adam, compressed, fewer, percent

CALIBRATION = 5000  # samples
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rms": {"calibrate": "rms", "correct_bias": False},
    "rms + bias": {"calibrate": "rms"},
    "error diffusion": {},  # the default
}


# -- Monte Carlo quantisation --------------------------------------------------------------------------------------


def quantised(model: nn.Module, split: data.DataSet, budgets: Sequence[float], seed: int, per: str = "layer") -> Rows:
    """A row for each calibration and budget: the accuracy, and the weights that are drawn, kept and stored."""
    whole = percent(model, split.test)
    calibration = split.train.x[torch.randperm(len(split.train.x))[:CALIBRATION]]
    rows: Rows = []
    for kind, options in KINDS.items():
        for budget in budgets:
            config = MonteCarlo(budget, per=per, seed=seed, **options)  # type: ignore[arg-type]
            small = compressed(model, config, None if kind == "plain" else calibration)
            rows.append({"calibration": kind, "per": per, "budget": str(budget), **_sizes(small, split, whole)})
    for bits in (8, 4, 3):
        sizes = _sizes(compressed(model, RoundToNearest(bits)), split, whole)
        rows.append({"calibration": f"rounded to {bits} bits", "per": per, "budget": "-", **sizes})
    return rows


def _sizes(model: nn.Module, split: data.DataSet, whole: float) -> dict[str, float]:
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "integers") and hasattr(layer, "code")]
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    now = percent(model, split.test)
    return {
        "accuracy %": now,
        "share of the model's %": 100 * now / whole,
        "samples %": 100 * sum(layer.samples for layer in layers) / weights,
        "kept %": 100 * sum(layer.nnz for layer in layers) / weights,
        "bits a weight": sum(8 * layer.code.numel() * layer.code.element_size() for layer in layers) / weights,
        "kB": measure(model).bytes_disk / 1000,
    }


def quantise_mnist(case: str, seed: int, quick: bool) -> Rows:
    """MLPs of several widths, 4 epochs on MNIST, then quantised without retraining."""
    split = fewer(data.load("mnist"), quick)
    seed_everything(seed)
    model = adam(models.mlp([int(width) for width in case.split("-")]), split, 1 if quick else 4, seed)
    rows = quantised(model, split, (0.12,) if quick else (0.05, 0.12, 0.2, 0.5, 1.0), seed)
    return [{"network": case, "model's %": percent(model, split.test), **row} for row in rows]


def lenet_cifar() -> nn.Sequential:
    """A LeNet for 32 x 32 images in colour, with ReLU."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 32, 5), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2), conv2=nn.Conv2d(32, 64, 5),
            relu2=nn.ReLU(), pool2=nn.MaxPool2d(2), flatten=nn.Flatten(), fc1=nn.Linear(1600, 512), relu3=nn.ReLU(),
            fc2=nn.Linear(512, 10),
        )
    )  # fmt: skip


def quantise_cifar(case: str, seed: int, quick: bool) -> Rows:
    """LeNet on CIFAR-10, 6 epochs, quantised with a density for each layer or each filter."""
    split = fewer(data.load("cifar-10", images=True), quick, 1000)
    seed_everything(seed)
    model = adam(lenet_cifar(), split, 1 if quick else 6, seed)
    budgets = (0.5,) if quick else (0.05, 0.12, 0.25, 0.5, 1.0)
    rows = [row for per in ("layer", "filter") for row in quantised(model, split, budgets, seed, per)]
    return [{"model's %": percent(model, split.test), **row} for row in rows]


def sampling_error(case: str, seed: int, quick: bool) -> Rows:
    """Mean |error| of a random matrix's weights against the samples drawn, by kinds of sample points."""
    w = torch.randn(100, 100, generator=torch.Generator().manual_seed(seed))
    rows = []
    for samples in (1, 2, 4, 8, 16, 32, 64):
        counts, scale = sample(w, samples, "layer", case, torch.Generator().manual_seed(seed + 1))  # type: ignore[arg-type]
        error = float((counts * scale - w).abs().mean())
        rows.append({"points": case, "samples a weight": samples, "mean error": error})
    return rows


# -- claims --------------------------------------------------------------------------------------------------------


def quantisation_claim(rows: Rows) -> list[Finding]:
    """Is 97% of the model's accuracy left at 12% of its weights? As the document samples, and calibrated."""
    findings = []
    for kind, says in (("plain", "as printed"), ("error diffusion", "calibrated layer by layer")):
        parts: dict[str, Verdict] = {}
        for network in dict.fromkeys(row["network"] for row in rows):
            shares = [r["share of the model's %"] for r in rows
                      if (r["network"], r["calibration"], r["budget"]) == (network, kind, "0.12")]  # fmt: skip
            if shares:
                parts |= judged(f"{network} {spread(shares)}", at_least(97), shares)
        if parts:
            text = f"At least 97% of the model's accuracy at 12% of the weights, sampled {says}"
            findings.append(claim("Keller et al., slide 'Test accuracy for two layer ReLU'", text, parts))
    return findings


def cifar_claim(rows: Rows) -> list[Finding]:
    slide = "Keller et al., slide 'Application to convolutional layers'"
    whole = sorted({row["model's %"] for row in rows})  # of each run
    shares = [r["share of the model's %"] for r in rows
              if (r["calibration"], r["budget"], r["per"]) == ("plain", "0.5", "filter")]  # fmt: skip
    findings = [figure(slide, "LeNet on CIFAR-10, accuracy in %", 69.12, whole, percent=True)] if whole else []
    if shares:
        findings.append(figure(slide, "share of it at 50% sampled by filter, plain, in %", 88, shares, percent=True))
    return findings


def slope_claim(rows: Rows) -> list[Finding]:
    """How the error falls with the samples: the exponent by least squares over 4 to 64 samples, of each matrix."""
    parts: dict[str, Verdict] = {}
    for points, exponent in (("jittered", -1.0), ("independent", -0.5)):
        logs = [
            (math.log(row["samples a weight"]), math.log(row["mean error"]))
            for row in rows
            if row["points"] == points and row["samples a weight"] >= 4
        ]
        runs = [logs[first : first + 5] for first in range(0, len(logs), 5)]  # 4, 8, 16, 32, 64 samples
        slopes = [statistics.linear_regression(*zip(*run, strict=True)).slope for run in runs]
        if slopes:
            text = f"{points} as N^{statistics.fmean(slopes):.3f} (N^{exponent:g} in theory), {len(slopes)} matrices"
            parts |= judged(text, equal(0.05), [slope - exponent for slope in slopes])
    says = "The error of jittered samples falls as 1/N, that of independent ones as 1/sqrt(N)"
    return [claim("Keller et al., slide 'Stochastic evaluation of scalar product'", says, parts)] if parts else []


def fan_in_claim(records: Records) -> list[Finding]:
    """Our accuracies alone: the curves of the document are lost."""
    parts = []
    for methods in records.values():
        for method, runs in methods.items():
            if accuracies := metric(runs, "test_accuracy", 100):
                parameters = runs[0].cost.get("parameters", 0)
                parts.append(f"{method} {statistics.fmean(accuracies):.2f}% with {parameters:,} parameters")
    return [unprinted("Keller et al., slide 'Test accuracy for AlexNet on CIFAR-10'", f"{'; '.join(parts)}.")]


REPRODUCTIONS: list[Computation | Reproduction] = [
    Computation(
        "quantise-mnist",
        "MLPs on MNIST as sampled integers, no retraining, plain and calibrated "
        "(Keller et al.: 97% of the accuracy at 12%).",
        quantise_mnist,
        ["784-300-100-10", "784-1024-10", "784-1024-1024-10"],
        seeds=(0, 1, 2),
        charts=[
            Chart("kept %", "share of the model's %", ["network", "calibration"], "accuracy against weights kept"),
            Chart("kB", "accuracy %", ["network", "calibration"], "accuracy against bytes on disk"),
        ],
        data=["mnist"],
        claims=[quantisation_claim],
    ),
    Computation(
        "quantise-cifar",
        "LeNet on CIFAR-10 as sampled integers, by layer and by filter "
        "(Keller et al.: 88% of the accuracy at 50% sampled).",
        quantise_cifar,
        ["lenet"],
        data=["cifar-10"],
        charts=[Chart("samples %", "share of the model's %", ["calibration", "per"], "accuracy against samples")],
        claims=[cifar_claim],
    ),
    Computation(
        "sampling-error",
        "The error of sampled weights: 1/N for jittered points, 1/sqrt(N) for independent ones (Keller et al.).",
        sampling_error,
        ["jittered", "stratified", "independent"],
        seeds=(0, 1, 2, 3, 4),
        charts=[Chart("samples a weight", "mean error", ["points"], "error by samples", log=True)],
        claims=[slope_claim],
    ),
    Reproduction(
        "alexnet-fan-in",
        "A small AlexNet on CIFAR-10 with a constant number of inputs to each unit (Keller et al.).",
        "alexnet-fan-in",
        {"alexnet": []},
        quick=["training.epochs=1", "data.name=orl", "data.validation=0.2"],
        claims=[fan_in_claim],
        notes=("The document's curves are lost; there is nothing printed to set beside.",),
    ),
    Reproduction(
        "caffenet-sampled",
        "CaffeNet on your own ILSVRC12, sampled at several budgets, and with a constant fan-in (Keller et al.). Weeks.",
        "caffenet-sampled",
        {"imagenet": []},
        quick=["training.epochs=1"],
        notes=("The document's curves are lost; there is nothing printed to set beside.",),
        long=True,
    ),
]  # fmt: skip
