"""003: pruning by clusters and sub-clusters, compensation, and how long retraining takes."""

from __future__ import annotations

import copy
import math
import re
import statistics
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from filigree import data, models
from filigree.compress import (
    ClusterPruning,
    MagnitudePruning,
    MonteCarlo,
    Origin,
    RandomPruning,
    SubClustering,
    SubsetPruning,
    fit_gamma,
    net_deviation,
    retraining_bound,
)
from filigree.compress.pruning import normalised
from filigree.compress.pruning.graph import layer_macs
from filigree.convert import compress_
from filigree.cost import measure
from filigree.report import Chart
from filigree.reproduce.reproduction import Computation, Records, Reproduction, Rows
from filigree.train import evaluate, fit, seed_everything

HELD = 5000  # training samples that validate: recovery is judged on them
PRUNING = 2000  # samples that pruning sees


def lenet5_thesis(width: tuple[int, int, int] = (6, 16, 84)) -> nn.Sequential:
    """The thesis' LeNet-5: same padding, no C5; 69,362 parameters, with (32, 64, 1024) 3,274,634."""
    a, b, c = width
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, a, 5, padding=2), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(a, b, 5, padding=2), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2), flatten=nn.Flatten(),
            fc1=nn.Linear(49 * b, c), relu3=nn.ReLU(), fc2=nn.Linear(c, 10),
        )
    )  # fmt: skip


# network -> how it is made, learning rate, epochs, units of each layer that the document keeps, its figures
NETWORKS: dict[str, tuple[Callable[[], nn.Module], float, int, dict[str, int], str]] = {
    "lenet-300-100": (lambda: models.mlp([784, 300, 100, 10]), 0.01, 4, {"fc1": 76, "fc2": 25},
                      "97.77, same, 4 epochs"),
    "lenet5": (lenet5_thesis, 0.01, 4, {"conv1": 4, "conv2": 5, "fc1": 19}, "99.22, same, about 25 epochs"),
    "lenet5-like": (
        lambda: lenet5_thesis((32, 64, 1024)), 0.001, 2, {"conv1": 17, "conv2": 19, "fc1": 98}, "-, 3 epochs",
    ),
}  # fmt: skip

# name -> config, called with keep, compensate and seed
UNITS: dict[str, Callable[..., Any]] = {
    "random": RandomPruning, "magnitude": MagnitudePruning, "k-means": ClusterPruning,
    "ward": partial(ClusterPruning, method="ward"), "subset": SubsetPruning,
}  # fmt: skip
CONNECTIONS: dict[str, Callable[..., Any]] = {
    "random connections": partial(RandomPruning, of="connections"),
    "magnitude connections": partial(MagnitudePruning, of="connections"),
}


def load_mnist(images: bool) -> data.DataSet:
    return data.load("mnist", images=images, validation=HELD)


def train(model: nn.Module, split: data.DataSet, lr: float, epochs: int, seed: int, until: float = 101.0) -> int:
    """Adam, batch 128; the epochs it took to reach `until` on validation data, or all."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for epoch in range(epochs):
        fit(model, split.train, optimizer=optimizer, epochs=1, batch_size=128, seed=100 * seed + epoch, progress=False)
        if percent(model, split.validation) >= until:
            return epoch + 1
    return epochs


def percent(model: nn.Module, part: Any) -> float:
    return 100 * float(evaluate(model, part)["accuracy"])


def macs(model: nn.Module, x: torch.Tensor) -> int:
    return sum(layer_macs(model, x[:1]).values())


def printed_tables(case: str, seed: int, quick: bool) -> Rows:
    """The networks of 5.1, 5.3 and 5.4 at the units that the document keeps: before and after fine-tuning."""
    build, lr, epochs, keep, _ = NETWORKS[case]
    split = load_mnist(case != "lenet-300-100")
    seed_everything(seed)
    model = build()
    train(model, split, lr, 1 if quick else epochs, seed)
    x, target = split.train.x[:PRUNING], percent(model, split.validation)
    whole = percent(model, split.test)
    size, work = measure(model).parameters, macs(model, x)
    rows: Rows = [{"network": case, "method": "dense", "compensation": "-", "test %": whole, "fine-tuned %": whole}]
    for name, config in UNITS.items():
        for compensate in (None, "correlation", "least_squares"):
            small = copy.deepcopy(model)
            compress_(small, config(keep=dict(keep), compensate=compensate, seed=seed), x)
            row = {
                "network": case,
                "method": name,
                "compensation": str(compensate),
                "test %": percent(small, split.test),
            }
            rows.append(
                row | _after(small, split, lr, target, seed, size, work, x, compensate == "least_squares", quick)
            )
    for name, importance in (("torch-pruning magnitude", tp.importance.GroupMagnitudeImportance()),
                             ("torch-pruning random", tp.importance.RandomImportance())):  # fmt: skip
        small = _torch_pruning(model, x, importance, keep)
        row = {"network": case, "method": name, "compensation": "-", "test %": percent(small, split.test)}
        rows.append(row | _after(small, split, lr, target, seed, size, work, x, True, quick))
    return rows


def _after(
    small: nn.Module, split: data.DataSet, lr: float, target: float, seed: int, size: int, work: int, x: torch.Tensor,
    tune: bool, quick: bool,
) -> dict[str, Any]:  # fmt: skip
    row: dict[str, Any] = {
        "times fewer parameters": size / measure(small).parameters, "times fewer MACs": work / macs(small, x),
    }  # fmt: skip
    if tune:
        row["epochs to regain"] = float(train(small, split, lr / 10, 1 if quick else 6, seed, target))
        row["regained"] = float(percent(small, split.validation) >= target)
        row["fine-tuned %"] = percent(small, split.test)
    return row


def _torch_pruning(model: nn.Module, x: torch.Tensor, importance: Any, keep: dict[str, int]) -> nn.Module:
    """torch-pruning's own pruner with as many units of each layer: equal multiply-adds."""
    small = copy.deepcopy(model)
    ratios = {}
    for name, units in keep.items():
        layer: Any = small.get_submodule(name)
        ratios[layer] = 1 - units / len(layer.weight)
    last = [m for m in small.modules() if isinstance(m, nn.Linear)][-1]
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MetaPruner(
            small, x[:1], importance=importance, pruning_ratio=0.0, pruning_ratio_dict=ratios, ignored_layers=[last],
        )  # fmt: skip
        pruner.step()
    return small


def compensation(case: str, seed: int, quick: bool) -> Rows:
    """784-300-100-10 trained at 0.001: what methods and compensations leave, without fine-tuning; then quantised."""
    split = load_mnist(False)
    seed_everything(seed)
    model = models.mlp([784, 300, 100, 10])
    train(model, split, 0.001, 1 if quick else 4, seed)
    x, whole = split.train.x[:PRUNING], percent(model, split.test)
    rows: Rows = [{"keep": "1", "method": "dense", "None": whole, "correlation": whole, "least squares": whole}]
    keep = float(case)
    for name, config in UNITS.items():
        row: dict[str, Any] = {"keep": case, "method": name}
        for label, compensate in (("None", None), ("correlation", "correlation"), ("least squares", "least_squares")):
            small = copy.deepcopy(model)
            compress_(small, config(keep, compensate=compensate, seed=seed), x)
            row[label] = percent(small, split.test)
        compress_(small, MonteCarlo(0.5, seed=seed), x)
        row |= {"then 0.5 samples a weight": percent(small, split.test), "kB": measure(small).bytes_disk / 1000}
        rows.append(row)
    for name, config in CONNECTIONS.items():
        row = {"keep": case, "method": name}
        for label, compensate in (("None", None), ("least squares", "least_squares")):
            small = copy.deepcopy(model)
            compress_(small, config(keep, compensate=compensate, seed=seed), x)
            row[label] = percent(small, split.test)
        rows.append(row)
    return rows


def energy(case: str, seed: int, quick: bool) -> Rows:
    """How many units p keeps, by the printed rule and by quantiles (5.8: initial 20 and 25, learning rate 0.01)."""
    split = load_mnist(False)
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
    build, lr, epochs, _, _ = NETWORKS["lenet5-like"]
    split = load_mnist(True)
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
        splits = [int(found[1]) for change in report.changes if (found := re.search(r"(\d+) splits", change.note))]
        row: dict[str, Any] = {
            "rule": case, "p": str(p), **{name: float(count) for name, count in kept.items()},
            "splits": float(sum(splits)), "sparsity % as printed": 100 * (1 - counted_as_printed(model, kept)),
            "times fewer parameters": measure(model).parameters / measure(small).parameters,
            "test %": percent(small, split.test),
        }  # fmt: skip
        row["epochs to regain"] = float(train(small, split, lr / 2, 1 if quick else 4, seed, target))
        rows.append(row | {"regained": float(percent(small, split.validation) >= target)})
    return rows


def _outputs(model: nn.Module, name: str) -> int:
    layer: Any = model.get_submodule(name)
    return len(layer.weight)


def counted_as_printed(model: nn.Module, kept: Mapping[str, int]) -> float:
    """The share of the parameters that stay, as the document counts: a removed filter takes its own weights along, but
    not the next layer's, a removed unit of a linear layer both."""
    stay, inputs = 0, None
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            outputs = kept.get(name, len(layer.weight))
            width = layer.weight[0].numel() if inputs is None or isinstance(layer, nn.Conv2d) else inputs
            stay += outputs * (width + 1)
            inputs = outputs if isinstance(layer, nn.Linear) else None
    return stay / sum(p.numel() for p in model.parameters())


def clustering(case: str, seed: int, quick: bool) -> Rows:
    """Methods and selection criteria of 4.1 to 4.5 at a quarter of the units, without compensation and with."""
    split = load_mnist(case != "lenet-300-100")
    seed_everything(seed)
    model = NETWORKS[case][0]()
    train(model, split, 0.001, 1 if quick else 3, seed)
    x, rows = split.train.x[:1000], []
    methods = ("kmeans", "ward", "average", "complete", "single", "centroid", "spectral", "gmm")
    for method in methods[:2] if quick else methods:
        for select in ("weight_norm", "bias", "bias_magnitude", "centroid", "random"):
            row: dict[str, Any] = {"network": case, "method": method, "select": select}
            for label, compensate in (("None", None), ("least squares", "least_squares")):
                small = copy.deepcopy(model)
                options: Any = {"compensate": compensate, "method": method, "select": select}
                config = ClusterPruning(0.4, seed=seed, **options)
                compress_(small, config, x)
                row[label] = percent(small, split.test)
            rows.append(row)
    return rows


def deviations(case: str, seed: int, quick: bool) -> Rows:
    """Error, Theorem 2's bound and net deviation of every method over levels, D over all of them (3.13)."""
    build, lr, epochs, _, _ = NETWORKS[case]
    split = load_mnist(case != "lenet-300-100")
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
        for level in (0.1, 0.3, 0.5, 0.7, 0.9):
            small = copy.deepcopy(model)
            compress_(small, config(1 - level, seed=seed), x)
            found = net_deviation(model, small, x[:200])
            rows.append({
                "network": case, "method": name, "pruned": str(level), "parameters": float(measure(small).parameters),
                "MACs": float(measure(small, x[:1]).macs_forward or 0), "test %": percent(small, split.test),
                "error": found.error, "bound": found.bound, "deviation": found.value,
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


def retraining(case: str, seed: int, quick: bool) -> Rows:
    """784-300-100-10, pruned and retrained with several optimizers, tenths of an epoch counted, against Theorem 1."""
    split = load_mnist(False)
    rows: Rows = []
    for name, lr, batch in SETTINGS[:1] if quick else SETTINGS:
        seed_everything(seed)
        model = models.mlp([784, 300, 100, 10])
        origin = Origin(split.train.x[:5000], split.train.y[:5000])
        fit(model, split.train, optimizer=OPTIMIZERS[name](model.parameters(), lr), epochs=1 if quick else 5,
            batch_size=batch, seed=seed, hooks=origin, progress=False)  # fmt: skip
        target = percent(model, split.validation)
        if target < 50:  # SGD at 0.1 with batches of 32 diverges: there is nothing to regain
            continue
        for level in (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9):
            config = {**UNITS, **CONNECTIONS}[case]
            small = copy.deepcopy(model)
            compress_(small, config(1 - level, compensate=None, seed=seed), split.train.x[:1000])
            bounds = {form: retraining_bound(origin, model, small, form=form) for form in ("printed", "derived")}
            row: dict[str, Any] = {
                "pruned": case, "optimizer": name, "lr": str(lr), "batch_size": str(batch), "level": str(level),
                "test %": percent(small, split.test), "printed, gamma 1": bounds["printed"],
                "derived, gamma 1": bounds["derived"],
            }  # fmt: skip
            optimizer = OPTIMIZERS[name](small.parameters(), lr)
            taken = regain(small, split, optimizer, batch, 1 if quick else 6, seed, target)
            rows.append(row | {"epochs to regain": taken or 6.0, "regained": float(taken is not None)})
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
            its = split.train.x[part], split.train.y[part]
            fit(model, its, optimizer=optimizer, epochs=1, batch_size=batch, progress=False)
            if percent(model, split.validation) >= target:
                return epoch + (tenth + 1) / 10
    return None


def gamma_claim(rows: Rows) -> str:
    """How well fitted gammas foretell levels they were not fitted on: the mean factor between foretold and taken."""
    lines = []
    for case in dict.fromkeys(row["pruned"] for row in rows):
        its = [row for row in rows if row["pruned"] == case and row["regained"]]
        seen, unseen = ([row for row in its if (row["level"] in HELD_OUT) == held] for held in (False, True))
        if len(seen) < 8 or not unseen:
            continue
        factors = {}
        for bound in ("printed", "derived", "no bound"):
            for what, keys in (("constant", ()), ("fitted", ("level", "batch_size", "lr", "optimizer"))):
                gamma = fit_gamma([_run(row, keys) for row in seen], [_bound(row, bound) for row in seen],
                                  [row["epochs to regain"] for row in seen])  # fmt: skip
                foretold = [gamma(_run(row, keys)) * _bound(row, bound) for row in unseen]
                apart = [abs(math.log(a / row["epochs to regain"])) for a, row in zip(foretold, unseen, strict=True)]
                factors[f"{bound}, {what}"] = f"{math.exp(statistics.fmean(apart)):.2f}"
        lines.append(f"{case} ({len(seen)} runs, {len(unseen)} held out): " + ", ".join(map(" ".join, factors.items())))
    return (
        "Mean factor between epochs foretold and taken at held-out levels, by bound and gamma: "
        + "; ".join(lines)
        + "."
    )


def _run(row: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: row[key] if key == "optimizer" else float(row[key]) for key in keys}


def _bound(row: Mapping[str, Any], name: str) -> float:
    return 1.0 if name == "no bound" else max(row[f"{name}, gamma 1"], 1e-9)


def tables_claim(rows: Rows) -> str:
    parts = []
    for network in dict.fromkeys(row["network"] for row in rows):
        its = [row for row in rows if row["network"] == network]
        dense = statistics.fmean(row["test %"] for row in its if row["method"] == "dense")
        found = [row for row in its if row["method"] == "subset" and row["compensation"] == "least_squares"]
        if found:
            before = statistics.fmean(row["test %"] for row in found)
            after = statistics.fmean(row["fine-tuned %"] for row in found)
            times = found[0]["times fewer parameters"]
            parts.append(
                f"{network}: {dense:.2f}% -> {before:.2f} at 1/{times:.1f} of the parameters, "
                f"fine-tuned {after:.2f} (printed: {NETWORKS[network][4]})"
            )
    return "; ".join(parts) + "."


def monotone_claim(rows: Rows) -> str:
    """Is p monotone in what it keeps? Rows come in the order of the runs, of each run in the order of p."""
    lines = []
    for lr in dict.fromkeys(row["learning rate"] for row in rows):
        for rule in ("hoh", "quantile"):
            its = [
                row for row in rows if (row["learning rate"], row["rule"], row["compensation"]) == (lr, rule, "None")
            ]
            runs = [its[first : first + 5] for first in range(0, len(its), 5)]
            units = [[row["fc1"] + row["fc2"] for row in run] for run in runs]
            falling = sum(all(a >= b for a, b in pairwise(run)) for run in units)
            means = " / ".join(f"{statistics.fmean(column):.0f}" for column in zip(*units, strict=True))
            lines.append(f"at {lr} {rule}: {means} units, falling in {falling} of {len(runs)} runs")
    return f"Units kept at p = .1, .3, .5, .7, .8: {'; '.join(lines)}."


def pruned_claim(records: Records) -> str:
    """Of each method: sizes against the dense network, accuracies before and after fine-tuning."""
    lines = []
    for runs in records.values():
        whole = runs["dense"][0].cost
        for method, its in runs.items():
            found, cost = its[0].metrics, its[0].cost
            if "compressed_test_accuracy" not in found:
                continue
            before, pruned, after = (
                100 * float(found[f"{when}test_accuracy"] or 0) for when in ("trained_", "compressed_", "")
            )
            smaller, faster = (whole[key] / cost[key] for key in ("parameters", "macs_forward"))
            lines.append(
                f"{method}: {before:.2f}% -> {pruned:.2f} at 1/{smaller:.1f} of the parameters and 1/{faster:.1f} of "
                f"the multiply-adds, {after:.2f} after {found['finetune_epochs']} epochs"
            )
    return "; ".join(lines) + "."


REPRODUCTIONS: list[Computation | Reproduction] = [
    Reproduction(
        "prune-cnn",
        "The 12-layer network on CIFAR-10, sub-clustered, pruned at equal multiply-adds, fine-tuned (003, 5.5).",
        "cnn-cifar-pruned",
        {"cifar-10": []},
        {"cifar-10": {"dense": {"test": 0.7175}, "hoh": {"test": 0.7103}}},
        ["training.epochs=1"],
        [pruned_claim],
        ("Printed: 4,604,426 -> 386,584 parameters (11.9x), 8 epochs; 68.137% as it counts.",),
    ),
    Reproduction(
        "prune-vgg",
        "VGG-16, modified, on CIFAR-10, sub-clustered, pruned at equal multiply-adds, fine-tuned (003, 5.7).",
        "vgg-cifar-pruned",
        {"cifar-10": []},
        {"cifar-10": {"dense": {"test": 0.6721}, "hoh": {"test": 0.6281}}},
        ["training.epochs=1"],
        [pruned_claim],
        ("Printed: 14.98M -> 0.644M parameters (23x; printed as 3.06M, 4.93x), 25 to 50 epochs.",),
    ),
    Computation(
        "prune-mnist",
        "LeNet-300-100 and LeNet-5 on MNIST at the units that the document keeps (003, 5.1 and 5.3).",
        printed_tables,
        ["lenet-300-100", "lenet5"],
        seeds=(0, 1, 2),
        claims=[tables_claim],
        notes=[
            "The document's 431.09x, 394.73x and their kind are percentages (300 -> 76 is 3.95x): its comparison with "
            "published ratios is not one of like with like.",
        ],
    ),
    Computation(
        "prune-lenet5-like",
        "The LeNet-5-like network of 3.27 million parameters at the units that the document keeps (003, 5.4).",
        printed_tables,
        ["lenet5-like"],
        claims=[tables_claim],
    ),
    Computation(
        "prune-compensation",
        "784-300-100-10 on MNIST without fine-tuning: every method with every compensation (003, 5.8 to 5.12).",
        compensation,
        ["0.5", "0.25", "0.1"],
        seeds=(0, 1, 2),
    ),
    Computation(
        "prune-energy",
        "Sub-clustering against p: the printed rule and the quantile rule (003, table 5.8).",
        energy,
        ["0.01", "0.001"],
        seeds=(0, 1, 2),
        charts=[Chart("p", "fc1", ["learning rate", "rule", "compensation"], "units of fc1 by p")],
        claims=[monotone_claim],
    ),
    Computation(
        "prune-energy-large",
        "Sub-clustering the LeNet-5-like network against p (003, table 5.9).",
        energy_large,
        ["hoh", "quantile"],
        charts=[Chart("p", "sparsity % as printed", ["rule"], "sparsity by p")],
        notes=[
            "Printed, at p = .1, .5, .8: sparsity 89.42, 91.73, 94.11%, accuracy 42.57, 36.71, 31.65%, 3, 2 and over "
            "25 epochs."
        ],
    ),
    Computation(
        "prune-clusters",
        "Clustering methods and selection criteria at 40% of the units (003, chapter 4).",
        clustering,
        ["lenet-300-100", "lenet5"],
        seeds=(0, 1, 2),
    ),
    Computation(
        "net-deviation",
        "Error, Theorem 2's bound and net deviation of every method over pruning levels (003, Figs. 3.1, 3.2, 5.12).",
        deviations,
        ["lenet-300-100", "lenet5"],
        seeds=(0, 1, 2),
        charts=[
            Chart("pruned", "error", ["network", "method"], "error of the output by level"),
            Chart("pruned", "D", ["network", "method"], "D, net deviation normalised over all, by level"),
        ],
    ),
    Computation(
        "retraining-epochs",
        "Epochs to regain the accuracy against Theorem 1, its gamma fitted and tested (003, tables 3.1, 3.2).",
        retraining,
        ["random", "k-means", "random connections", "magnitude connections"],
        seeds=(0, 1),
        charts=[
            Chart("level", "epochs to regain", ["pruned", "optimizer", "lr", "batch_size"], "epochs to regain by level")
        ],
        claims=[gamma_claim],
    ),
]
