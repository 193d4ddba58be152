"""John 2019, chapter 5: sub-clustering against its energy p, and on CIFAR-10."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean as mean
from typing import Any

import torch
from torch import nn

from filigree import models
from filigree.compress import SubClustering
from filigree.compress.compression import compress_
from filigree.measure.cost import measure
from filigree.report import Chart
from filigree.train import seed_everything
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.findings import Finding, Verdict, claim, figure, positive, share, unprinted
from filigree_papers.reproduce.john_pruning import NETWORKS, PRUNING, counted_as_printed, load_mnist, train
from filigree_papers.reproduce.reproduction import Computation, Records, Reproduction, metric
from filigree_papers.reproduce.steps import percent

MOST_LARGE = 4  # epochs to regain the accuracy, of the LeNet-5-like network


def energy(case: str, seed: int, quick: bool) -> Rows:
    """How many units p keeps, by the printed rule and by quantiles (5.8: initial 20 and 25, learning rate 0.01)."""
    split = load_mnist(False, quick)
    seed_everything(seed)
    model = models.mlp([784, 300, 100, 10])
    train(model, split, float(case), 1 if quick else 4, seed)
    x, rows = split.train.x[:PRUNING], []
    for criterion in ("hoh", "quantile"):
        for p in (0.1, 0.3, 0.5, 0.7, 0.8):
            for compensate in (None, "least_squares"):
                small = copy.deepcopy(model)
                config = SubClustering(initial={"fc1": 20, "fc2": 25}, energy=p, criterion=criterion, seed=seed,
                                       compensate=compensate)  # fmt: skip
                report = compress_(small, config, x)
                dead = sum(int(c.note.split(" dead")[0].split()[-1]) for c in report.changes if " dead" in c.note)
                rows.append({
                    "learning rate": case, "rule": criterion, "p": str(p), "compensation": str(compensate),
                    "fc1": float(small.fc1.out_features), "fc2": float(small.fc2.out_features), "dead": float(dead),
                    "test %": percent(small, split.test),
                })  # fmt: skip
    return rows


def energy_large(case: str, seed: int, quick: bool) -> Rows:
    """The same of the LeNet-5-like network (5.9: initial 10, 15 and 50), with sparsity as printed and retraining."""
    build, lr, epochs, _ = NETWORKS["lenet5-like"]
    split = load_mnist(True, quick)
    seed_everything(seed)
    model = build()
    train(model, split, lr, 1 if quick else epochs, seed)
    x, target, rows = split.train.x[: 200 if quick else PRUNING], percent(model, split.validation), []
    for p in (0.1, 0.5, 0.8) if quick else (0.1, 0.3, 0.5, 0.7, 0.8):
        small = copy.deepcopy(model)
        initial: Any = {"conv1": 10, "conv2": 15, "fc1": 50}
        config = SubClustering(initial=initial, energy=p, criterion="hoh" if case == "hoh" else "quantile", seed=seed)
        report = compress_(small, config, x)
        kept = {name: _outputs(small, name) for name in initial}
        matches = (re.search(r"(\d+) splits", change.note) for change in report.changes)
        splits = [int(match[1]) for match in matches if match]
        row: dict[str, Any] = {
            "rule": case, "p": str(p), **{name: float(count) for name, count in kept.items()},
            "splits": float(sum(splits)), "sparsity % as printed": 100 * (1 - counted_as_printed(model, kept)),
            "times fewer parameters": measure(model).parameters / measure(small).parameters,
            "test %": percent(small, split.test),
        }  # fmt: skip
        row["epochs to regain"] = float(train(small, split, lr / 2, 1 if quick else MOST_LARGE, seed, target))
        rows.append(row | {"regained": float(percent(small, split.validation) >= target)})
    return rows


def _outputs(model: nn.Module, name: str) -> int:
    layer: Any = model.get_submodule(name)
    return len(layer.weight)


# -- claims --------------------------------------------------------------------------------------------------------

# 32 x 32 faces, 267 of them: an epoch on CIFAR-10 takes minutes
QUICK = ["training.epochs=1", "data.name=orl", "data.validation=0.2"]

# p -> sparsity in %, test accuracy in %, epochs (over 25: 25)
TABLE_58 = {"0.1": (63.10, 84.32, 2), "0.5": (76.34, 76.07, 11), "0.8": (91.65, 53.08, 25)}
TABLE_59 = {"0.1": (89.42, 42.57, 3), "0.5": (91.73, 36.71, 2), "0.8": (94.11, 31.65, 25)}


def energy_claims(rows: Rows) -> list[Finding]:
    """Table 5.8, and whether fewer units stay as p grows. Rows come run by run, in the order of p."""
    with torch.device("meta"):
        whole = models.mlp([784, 300, 100, 10])

    def runs_of(lr: str, rule: str) -> Rows:
        setting = {"learning rate": lr, "rule": rule, "compensation": "None"}
        return [row for row in rows if setting.items() <= row.items()]

    findings = []
    for p, (sparsity, accuracy, _) in TABLE_58.items():
        at = [row for row in runs_of("0.01", "hoh") if row["p"] == p]
        if at:
            gone = [100 * (1 - counted_as_printed(whole, {"fc1": int(r["fc1"]), "fc2": int(r["fc2"])})) for r in at]
            findings.append(figure("John 2019, Table 5.8", f"p = {p}, sparsity in %", sparsity, gone, percent=True))
            ours = [r["test %"] for r in at]
            findings.append(figure("John 2019, Table 5.8", f"p = {p}, accuracy in %", accuracy, ours, percent=True))
    for rule, says in (("hoh", "as printed"), ("quantile", "by quantiles")):
        parts: dict[str, Verdict] = {}
        for lr in dict.fromkeys(row["learning rate"] for row in rows):
            units = [row["fc1"] + row["fc2"] for row in runs_of(lr, rule)]
            runs = [units[first : first + 5] for first in range(0, len(units), 5)]
            falling = [all(a >= b for a, b in pairwise(run)) for run in runs]
            means = " / ".join(f"{mean(column):.0f}" for column in zip(*runs, strict=True))
            parts[f"learning rate {lr}: {means}, falling in {sum(falling)} of {len(runs)} runs"] = share(falling)
        where = "John 2019, section 5.5.5"
        if rule == "hoh" and parts:
            findings.append(claim(where, f"Units kept at p = .1, .3, .5, .7, .8, {says}, fall", parts))
        elif parts:
            findings.append(unprinted(where, f"Units kept {says}: {'; '.join(parts)}."))
    return findings


def energy_large_claims(rows: Rows) -> list[Finding]:
    """Table 5.9, large networks at p < .4, and how many sub-clusterings there are."""
    by_p: dict[str, Rows] = {}
    for row in rows:
        if row["rule"] == "hoh":
            by_p.setdefault(row["p"], []).append(row)
    if not by_p:
        return []
    findings = []
    for p, (sparsity, accuracy, epochs) in TABLE_59.items():
        if p in by_p:
            gone, right, taken = (
                [row[key] for row in by_p[p]] for key in ("sparsity % as printed", "test %", "epochs to regain")
            )
            what = f"p = {p}, epochs to regain it ({MOST_LARGE} at most)"
            findings += [
                figure("John 2019, Table 5.9", f"p = {p}, sparsity in %", sparsity, gone, percent=True),
                figure("John 2019, Table 5.9", f"p = {p}, accuracy in %", accuracy, right, percent=True),
                figure("John 2019, Table 5.9", what, epochs, taken, cap=MOST_LARGE),
            ]
    splits = [row["splits"] for own in by_p.values() for row in own]
    parts = {f"{min(splits):.0f} to {max(splits):.0f}": share([number <= 4 for number in splits])}
    findings.append(claim("John 2019, section 5.5.6", "There are at most 4 sub-clusterings", parts))
    low, high = ([row["test %"] for p, own in by_p.items() if (float(p) < 0.4) == below for row in own]
                 for below in (True, False))  # fmt: skip
    text = f"{mean(low):.2f}% against {mean(high):.2f}%"
    says = "Large networks do better at p < .4"
    findings.append(claim("John 2019, section 5.5.5", says, {text: positive([mean(low) - mean(high)])}))
    return findings


def pruned_claim(where: str, parameters: int, epochs: int | None) -> Callable[[Records], list[Finding]]:
    """The printed figures, and the sizes and accuracies of each method, before and after fine-tuning."""

    def findings(records: Records) -> list[Finding]:
        of_methods = []
        for runs in records.values():
            whole = runs["dense"][0].cost
            hoh = runs.get("hoh", [])
            if hoh:
                ours: Sequence[float] = [run.cost["parameters"] for run in hoh]
                of_methods.append(
                    figure(where, "parameters that stay, counted from the printed units", parameters, ours)
                )
                if epochs is not None:
                    tuned = metric(hoh, "finetune_epochs")
                    of_methods.append(figure(where, "epochs of fine-tuning", epochs, tuned))
            for method, (first, *_) in runs.items():
                metrics, cost = first.metrics, first.cost
                if "compressed_test_accuracy" in metrics:
                    before, pruned, after = (
                        100 * float(metrics[f"{when}test_accuracy"] or 0) for when in ("trained_", "compressed_", "")
                    )
                    smaller, faster = (whole[key] / cost[key] for key in ("parameters", "macs_forward"))
                    of_methods.append(unprinted(where, (
                        f"{method}: {before:.2f}% -> {pruned:.2f} at 1/{smaller:.1f} of the parameters and "
                        f"1/{faster:.1f} of the multiply-adds, {after:.2f} after {metrics['finetune_epochs']} epochs."
                    )))  # fmt: skip
        return of_methods

    return findings


REPRODUCTIONS: list[Computation | Reproduction] = [
    Reproduction(
        "prune-cnn",
        "The 12-layer network on CIFAR-10, sub-clustered, pruned at equal multiply-adds, fine-tuned (John 2019, 5.5).",
        "cnn-cifar-pruned",
        {"cifar-10": []},
        {"cifar-10": {"dense": {"test": 0.7175}, "hoh": {"test": 0.7103}}},
        "John 2019, Table 5.6",
        QUICK,
        [pruned_claim("John 2019, Table 5.5", 386_584, 8)],
    ),
    Reproduction(
        "prune-vgg",
        "VGG-16, modified, on CIFAR-10, sub-clustered, pruned at equal multiply-adds, fine-tuned (John 2019, 5.7).",
        "vgg-cifar-pruned",
        {"cifar-10": []},
        {"cifar-10": {"dense": {"test": 0.6721}, "hoh": {"test": 0.6281}}},
        "John 2019, Table 5.6",
        QUICK,
        [pruned_claim("John 2019, Table 5.7", 644_000, None)],
    ),
    Computation(
        "prune-energy",
        "Sub-clustering against p: the printed rule and the quantile rule (John 2019, table 5.8).",
        energy,
        ["0.01", "0.001"],
        seeds=range(24),
        data=["mnist"],
        charts=[Chart("p", "fc1", ["learning rate", "rule", "compensation"], "units of fc1 by p")],
        claims=[energy_claims],
    ),
    Computation(
        "prune-energy-large",
        "Sub-clustering the LeNet-5-like network against p (John 2019, table 5.9).",
        energy_large,
        ["hoh", "quantile"],
        data=["mnist"],
        charts=[Chart("p", "sparsity % as printed", ["rule"], "sparsity by p")],
        claims=[energy_large_claims],
    ),
]
