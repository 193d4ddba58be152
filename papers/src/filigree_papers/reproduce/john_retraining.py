"""John 2019, chapter 3: what pruning changes against Theorem 2, and how long retraining takes against Theorem 1."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from filigree import data, models
from filigree.compress import RetrainingBaseline, fit_gamma, net_deviation, retraining_bound
from filigree.compress.pruning import normalised
from filigree.measure.cost import measure
from filigree.report import Chart
from filigree.train import fit, seed_everything
from filigree_papers.reproduce.claims import compared
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.findings import (
    Finding,
    Verdict,
    claim,
    difference,
    equal,
    figure,
    judged,
    positive,
    share,
)
from filigree_papers.reproduce.john_pruning import CONNECTIONS, MOST, NETWORKS, UNITS, load_mnist, train
from filigree_papers.reproduce.reproduction import Computation
from filigree_papers.reproduce.steps import compressed, percent


def deviations(case: str, seed: int, quick: bool) -> Rows:
    """Error, Theorem 2's bound and net deviation of every method over levels, D over all of them (3.13)."""
    build, lr, epochs, _ = NETWORKS[case]
    split = load_mnist(case != "lenet-300-100", quick)
    seed_everything(seed)
    model = build()
    train(model, split, lr / 10, 1 if quick else epochs, seed)
    x, rows = split.train.x[:1000], []
    contestants: dict[str, Callable[..., Any]] = {
        f"{name}, as it is": partial(config, compensate=None) for name, config in UNITS.items()
    }
    contestants |= {f"{name}, least squares": config for name, config in UNITS.items()}
    if case == "lenet-300-100":
        contestants |= {name: partial(config, compensate=None) for name, config in CONNECTIONS.items()}
    for name, config in contestants.items():
        for level in (0.1, 0.9) if quick else (0.1, 0.3, 0.5, 0.7, 0.9):
            small = compressed(model, config(1 - level, seed=seed), x)
            deviation = net_deviation(model, small, x[:200])
            rows.append({
                "network": case, "method": name, "pruned": str(level), "parameters": float(measure(small).parameters),
                "MACs": float(measure(small, x[:1]).macs_forward or 0), "test %": percent(small, split.test),
                "error": deviation.error, "bound": deviation.bound, "deviation": deviation.value,
            })  # fmt: skip
    values: list[Any] = [row["deviation"] for row in rows]
    for row, value in zip(rows, normalised(values), strict=True):
        row["D"] = value
    return rows


# optimizer, learning rate, batch size
SETTINGS = [
    ("adam", 0.001, 128), ("adam", 0.001, 32), ("adam", 0.0003, 128), ("sgd", 0.1, 128), ("sgd", 0.1, 32),
    ("sgd", 0.03, 128),
]  # fmt: skip
HELD_OUT = ("0.5", "0.8")  # levels that gamma is not fitted on
# table -> what is pruned; level -> epochs and gamma, of LeNet-300-100
PRINTED: dict[str, tuple[str, dict[str, tuple[float, float]]]] = {
    "John 2019, Table 3.1": ("random connections", {"0.1": (2.2, 1e-4), "0.6": (2.4, 0.2), "0.9": (2.8, 0.5)}),
    "John 2019, Table 3.2": ("random", {"0.1": (1.7, 0.01), "0.5": (2.6, 1.0), "0.9": (50.0, 100.0)}),
}


def retraining(case: str, seed: int, quick: bool) -> Rows:
    """784-300-100-10, pruned and retrained with several optimizers, tenths of an epoch counted, against Theorem 1."""
    split = load_mnist(False, quick)
    rows: Rows = []
    for name, lr, batch in SETTINGS[:1] if quick else SETTINGS:
        seed_everything(seed)
        model = models.mlp([784, 300, 100, 10])
        baseline = RetrainingBaseline(split.train.x[:5000], split.train.y[:5000])
        fit(model, split.train, optimizer=OPTIMIZERS[name](model.parameters(), lr), epochs=1 if quick else 5,
            batch_size=batch, seed=seed, callbacks=baseline, progress=False)  # fmt: skip
        target = percent(model, split.validation)
        if target < 50:  # SGD at 0.1 with batches of 32 diverges: there is nothing to regain
            continue
        for level in (0.1, 0.5, 0.9) if quick else (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9):
            config = {**UNITS, **CONNECTIONS}[case](1 - level, compensate=None, seed=seed)
            small = compressed(model, config, split.train.x[:1000])
            bounds = {form: retraining_bound(baseline, model, small, form=form) for form in ("printed", "derived")}
            row: dict[str, Any] = {
                "pruned": case, "optimizer": name, "lr": str(lr), "batch_size": str(batch), "level": str(level),
                "test %": percent(small, split.test), "printed, gamma 1": bounds["printed"],
                "derived, gamma 1": bounds["derived"],
            }  # fmt: skip
            optimizer = OPTIMIZERS[name](small.parameters(), lr)
            taken = regain(small, split, optimizer, batch, 1 if quick else MOST, seed, target)
            rows.append(row | {"epochs to regain": taken or float(MOST), "regained": float(taken is not None)})
    return rows


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9),
}  # fmt: skip


def regain(
    model: nn.Module, split: data.DataSet, optimizer: torch.optim.Optimizer, batch: int, epochs: int, seed: int,
    target: float,
) -> float | None:  # fmt: skip
    """Epochs until the validation accuracy is `target` again, to a tenth; None: not within `epochs`."""
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(len(split.train.x), generator=generator)
        for tenth, part in enumerate(order.chunk(10)):
            samples = split.train.x[part], split.train.y[part]
            fit(model, samples, optimizer=optimizer, epochs=1, batch_size=batch, progress=False)
            if percent(model, split.validation) >= target:
                return epoch + (tenth + 1) / 10
    return None


def epochs_claim(rows: Rows) -> list[Finding]:
    """Tables 3.1 and 3.2: epochs, of Adam at 0.001 with batches of 128; are they at least gamma times the bound?"""
    findings = []
    for where, (case, printed) in PRINTED.items():
        parts: dict[str, Verdict] = {}
        for level, (epochs, gamma) in printed.items():
            setting = {"pruned": case, "level": level, "optimizer": "adam", "lr": "0.001", "batch_size": "128"}
            own = [row for row in rows if setting.items() <= row.items()]
            if own:
                ours = [row["epochs to regain"] for row in own]
                cut = "" if all(row["regained"] for row in own) else f", cut at {MOST}"
                what = f"{case} at {level}, epochs to regain the accuracy{cut}"
                findings.append(figure(where, what, epochs, ours, cap=MOST))
                holds = [row["epochs to regain"] >= gamma * row["printed, gamma 1"] for row in own]
                parts[f"{case} at {level}, gamma {gamma:g}: in {sum(holds)} of {len(holds)} runs"] = share(holds)
        if parts:
            says = "The epochs are at least the bound, with the printed gamma"
            findings.append(claim("John 2019, Theorem 1", says, parts))
    return findings


def gamma_claim(rows: Rows) -> list[Finding]:
    """How well fitted gammas foretell levels they were not fitted on: the mean factor between foretold and taken.

    The bound says something where it foretells the epochs better than settings and level do without it.
    """
    parts: dict[str, Verdict] = {}
    for case in dict.fromkeys(row["pruned"] for row in rows):
        own = [row for row in rows if row["pruned"] == case and row["regained"]]
        seen, unseen = ([row for row in own if (row["level"] in HELD_OUT) == held] for held in (False, True))
        if len(seen) < 8 or not unseen:
            continue
        factors: dict[str, list[float]] = {}
        for bound in ("printed", "derived", "no bound"):
            for what, keys in (("constant", ()), ("fitted", ("level", "batch_size", "lr", "optimizer"))):
                gamma = fit_gamma([_run(row, keys) for row in seen], [_bound(row, bound) for row in seen],
                                  [row["epochs to regain"] for row in seen])  # fmt: skip
                foretold = [gamma(_run(row, keys)) * _bound(row, bound) for row in unseen]
                apart = [abs(math.log(a / row["epochs to regain"])) for a, row in zip(foretold, unseen, strict=True)]
                factors[f"{bound}, {what}"] = apart
        less = [b - a for a, b in zip(factors["printed, fitted"], factors["no bound, fitted"], strict=True)]
        shown = ", ".join(f"{name} {math.exp(statistics.fmean(apart)):.2f}" for name, apart in factors.items())
        text = f"{case} ({len(seen)} runs, {len(unseen)} held out): {shown}, its log less by {difference(less)}"
        parts |= judged(text, positive, less)
    says = "Mean factor between epochs foretold and taken at held-out levels, by bound and gamma"
    return [claim("John 2019, chapter 6, gamma", says, parts)] if parts else []


def _run(row: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: row[key] if key == "optimizer" else float(row[key]) for key in keys}


def _bound(row: Mapping[str, Any], name: str) -> float:
    return 1.0 if name == "no bound" else max(row[f"{name}, gamma 1"], 1e-9)


def deviation_claims(rows: Rows) -> list[Finding]:
    """Theorem 2 on every network, and whether random pruning is the better one at low levels only (3.4.2)."""
    findings = []
    holds = [row["error"] <= row["bound"] for row in rows]
    text = f"in {sum(holds)} of {len(holds)} cases"
    says = "The error of the output stays below the bound"
    findings.append(claim("John 2019, Theorem 2", says, {text: share(holds)}))
    for network, where in (("lenet-300-100", "John 2019, Fig. 3.1"), ("lenet5", "John 2019, Fig. 3.2")):
        ours = _by_level(rows, network, "D")
        parts = {
            f"D at {level}: {text}": verdict
            for level, sign in (("0.1", -1), ("0.9", 1))
            for text, verdict in compared(ours[level], [("random", "k-means")], sign).items()
        }
        if parts:
            says = f"{network}: random pruning has the lower D at low levels, not at high ones"
            findings.append(claim(where, says, parts))
    test = _by_level(rows, "lenet-300-100", "test %")
    low = compared(test["0.1"], [("random", "k-means")], rule=equal(1.0))
    high = compared(test["0.9"], [("k-means", "random"), ("k-means", "magnitude connections")])
    parts = {f"at 0.1, % {text}": verdict for text, verdict in low.items()}
    parts |= {f"at 0.9, % {text}": verdict for text, verdict in high.items()}
    if parts:
        says = "Accuracies are alike at low levels, clusters best at high ones"
        findings.append(claim("John 2019, Fig. 3.3", says, parts))
    return findings


def _by_level(rows: Rows, network: str, name: str) -> dict[str, dict[str, dict[int, float]]]:
    """Level -> method without compensation -> run -> figure."""
    figures: dict[str, dict[str, dict[int, float]]] = {"0.1": {}, "0.9": {}}
    for row in rows:
        if row["network"] == network and row["pruned"] in figures:
            runs = figures[row["pruned"]].setdefault(row["method"].removesuffix(", as it is"), {})
            runs[len(runs)] = row[name]
    return figures


REPRODUCTIONS: list[Computation] = [
    Computation(
        "net-deviation",
        "Error, Theorem 2's bound and net deviation of every method over pruning levels (John 2019, Figs. 3.1 to 3.3).",
        deviations,
        ["lenet-300-100", "lenet5"],
        seeds=(0, 1, 2),
        data=["mnist"],
        charts=[
            Chart("pruned", "error", ["network", "method"], "error of the output by level"),
            Chart("pruned", "D", ["network", "method"], "D, net deviation normalised over all, by level"),
        ],
        claims=[deviation_claims],
    ),
    Computation(
        "retraining-epochs",
        "Epochs to regain the accuracy against Theorem 1, its gamma fitted and tested (John 2019, tables 3.1, 3.2).",
        retraining,
        ["random", "k-means", "random connections", "magnitude connections"],
        seeds=(0, 1),
        data=["mnist"],
        charts=[
            Chart("level", "epochs to regain", ["pruned", "optimizer", "lr", "batch_size"], "epochs to regain by level")
        ],
        claims=[epochs_claim, gamma_claim],
    ),
]
