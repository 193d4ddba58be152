"""John 2019, chapters 4 and 5: pruning by clusters at the sizes that the document prints, and compensation."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from filigree import data, models
from filigree.compress import ClusterPruning, MagnitudePruning, MonteCarlo, RandomPruning, SubsetPruning
from filigree.compress.compression import compress_
from filigree.compress.pruning.graph import layer_macs
from filigree.measure.cost import measure
from filigree.train import fit, seed_everything
from filigree_papers.reproduce.claims import Pairs, compared
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.findings import (
    Finding,
    Verdict,
    at_least,
    claim,
    count,
    difference,
    equal,
    figure,
    judged,
    positive,
)
from filigree_papers.reproduce.reproduction import Computation
from filigree_papers.reproduce.steps import compressed, fewer, percent

HELD = 5000  # training samples that validate: recovery is judged on them
PRUNING = 2000  # samples that pruning sees
MOST = 6  # epochs to regain the accuracy


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


# network -> a function that builds it, learning rate, epochs, units of each layer that the document keeps
NETWORKS: dict[str, tuple[Callable[[], nn.Module], float, int, dict[str, int]]] = {
    "lenet-300-100": (lambda: models.mlp([784, 300, 100, 10]), 0.01, 4, {"fc1": 76, "fc2": 25}),
    "lenet5": (lenet5_thesis, 0.01, 4, {"conv1": 4, "conv2": 5, "fc1": 19}),
    "lenet5-like": (lambda: lenet5_thesis((32, 64, 1024)), 0.001, 2, {"conv1": 17, "conv2": 19, "fc1": 98}),
}

# name -> config, called with keep, compensate and seed
UNITS: dict[str, Callable[..., Any]] = {
    "random": RandomPruning, "magnitude": MagnitudePruning, "k-means": ClusterPruning,
    "ward": partial(ClusterPruning, method="ward"), "subset": SubsetPruning,
}  # fmt: skip
CONNECTIONS: dict[str, Callable[..., Any]] = {
    "random connections": partial(RandomPruning, of="connections"),
    "magnitude connections": partial(MagnitudePruning, of="connections"),
}


def load_mnist(images: bool, quick: bool) -> data.DataSet:
    return fewer(data.load("mnist", images=images, validation=HELD), quick)


def train(model: nn.Module, split: data.DataSet, lr: float, epochs: int, seed: int, until: float = 101.0) -> int:
    """Adam, batch 128; the epochs it took to reach `until` on validation data, or all."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for epoch in range(epochs):
        fit(model, split.train, optimizer=optimizer, epochs=1, batch_size=128, seed=100 * seed + epoch, progress=False)
        if percent(model, split.validation) >= until:
            return epoch + 1
    return epochs


def macs(model: nn.Module, x: torch.Tensor) -> int:
    return sum(layer_macs(model, x[:1]).values())


def printed_tables(case: str, seed: int, quick: bool) -> Rows:
    """The networks of 5.1, 5.3 and 5.4 at the units that the document keeps: before and after fine-tuning."""
    build, lr, epochs, keep = NETWORKS[case]
    split = load_mnist(case != "lenet-300-100", quick)
    seed_everything(seed)
    model = build()
    train(model, split, lr, 1 if quick else epochs, seed)
    x, target = split.train.x[:PRUNING], percent(model, split.validation)
    whole = percent(model, split.test)
    size, work = measure(model).parameters, macs(model, x)
    rows: Rows = [{"network": case, "method": "dense", "compensation": "-", "test %": whole, "fine-tuned %": whole}]
    for name, config in UNITS.items():
        for compensate in (None, "correlation", "least_squares"):
            small = compressed(model, config(keep=dict(keep), compensate=compensate, seed=seed), x)
            row = {
                "network": case,
                "method": name,
                "compensation": str(compensate),
                "test %": percent(small, split.test),
            }
            tune = compensate == "least_squares"
            rows.append(row | _after(small, split, lr, target, seed, size, work, x, tune, quick))
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
        row["epochs to regain"] = float(train(small, split, lr / 10, 1 if quick else MOST, seed, target))
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
    split = load_mnist(False, quick)
    seed_everything(seed)
    model = models.mlp([784, 300, 100, 10])
    train(model, split, 0.001, 1 if quick else 4, seed)
    x, whole = split.train.x[:PRUNING], percent(model, split.test)
    rows: Rows = [{"keep": "1", "method": "dense", "None": whole, "correlation": whole, "least squares": whole}]
    keep = float(case)
    for name, config in UNITS.items():
        row: dict[str, Any] = {"keep": case, "method": name}
        for label, compensate in (("None", None), ("correlation", "correlation"), ("least squares", "least_squares")):
            small = compressed(model, config(keep, compensate=compensate, seed=seed), x)
            row[label] = percent(small, split.test)
        compress_(small, MonteCarlo(0.5, seed=seed), x)
        row |= {"then 0.5 samples a weight": percent(small, split.test), "kB": measure(small).bytes_disk / 1000}
        rows.append(row)
    for name, config in CONNECTIONS.items():
        row = {"keep": case, "method": name}
        for label, compensate in (("None", None), ("least squares", "least_squares")):
            row[label] = percent(compressed(model, config(keep, compensate=compensate, seed=seed), x), split.test)
        rows.append(row)
    return rows


def counted_as_printed(model: nn.Module, kept: Mapping[str, int]) -> float:
    """The share of the parameters that stay, as the document counts them.

    A removed filter takes its own weights along, but not the next layer's; a removed unit of a linear layer takes both.
    """
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
    split = load_mnist(case != "lenet-300-100", quick)
    seed_everything(seed)
    model = NETWORKS[case][0]()
    train(model, split, 0.001, 1 if quick else 3, seed)
    x, rows = split.train.x[:1000], []
    methods = ("kmeans", "ward", "average", "complete", "single", "centroid", "spectral", "gmm")
    for method in methods[:2] if quick else methods:
        for select in ("weight_norm", "bias", "bias_magnitude", "centroid", "random"):
            row: dict[str, Any] = {"network": case, "method": method, "select": select}
            for label, compensate in (("None", None), ("least squares", "least_squares")):
                options: Any = {"compensate": compensate, "method": method, "select": select}
                row[label] = percent(compressed(model, ClusterPruning(0.4, seed=seed, **options), x), split.test)
            rows.append(row)
    return rows


# -- claims --------------------------------------------------------------------------------------------------------

# network -> place, test accuracy of the trained one, and in % the parameters that go, or all against those that stay
TABLES: dict[str, tuple[str, float | None, float, bool]] = {
    "lenet-300-100": ("John 2019, Table 5.1", 97.769, 76.803, True),
    "lenet5": ("John 2019, Table 5.3", 99.218, 434.22, False),
    "lenet5-like": ("John 2019, section 5.5.2", None, 90.103, True),
}  # fmt: skip
RETRAINED = {"lenet5": 25.0, "lenet5-like": 3.0, "lenet-300-100": 4.0}  # epochs


def tables_claim(rows: Rows) -> list[Finding]:
    """Accuracies, and whether clusters of k-means regain them, as the document's sub-clusters do."""
    findings = []
    for network, (where, accuracy, size, gone) in TABLES.items():
        own = [row for row in rows if row["network"] == network]
        kept = [row for row in own if (row["method"], row["compensation"]) == ("k-means", "least_squares")]
        if not kept:
            continue
        build, _, _, keep = NETWORKS[network]
        stay = counted_as_printed(build(), keep)
        what = f"{network}, as the document counts, parameters {'that go' if gone else 'against those that stay'}, %"
        findings.append(count(where, what, size, 100 * (1 - stay) if gone else 100 / stay, 3 if gone else 2))
        dense = [row["test %"] for row in own if row["method"] == "dense"]
        if accuracy is not None:
            findings.append(figure(where, f"{network}, trained, test accuracy in %", accuracy, dense, percent=True))
        what = f"{network}, k-means, epochs to regain the accuracy ({MOST} at most)"
        findings.append(figure(where, what, RETRAINED[network], [row["epochs to regain"] for row in kept], cap=MOST))
        apart = [row["fine-tuned %"] - whole for row, whole in zip(kept, dense, strict=True)]
        times = kept[0]["times fewer parameters"]
        text = f"fine-tuned minus trained, 1/{times:.1f} of the parameters, {difference(apart, ' points')}"
        findings.append(claim(where, f"{network} loses nothing", judged(text, at_least(0), apart)))
    return findings


def compensation_claim(rows: Rows) -> list[Finding]:
    """Does the update of the kept units, which takes over what the removed ones did, save accuracy?"""
    parts: dict[str, Verdict] = {}
    for keep in dict.fromkeys(row["keep"] for row in rows if row["method"] != "dense"):
        for method in ("k-means", "ward"):
            own = [row for row in rows if (row["keep"], row["method"]) == (keep, method)]
            apart = [row["correlation"] - row["None"] for row in own]
            parts |= judged(f"{method} at {keep} {difference(apart, ' points')}", positive, apart)
    return [claim("John 2019, eqs. 5.8 to 5.12", "The correlation update saves accuracy", parts)] if parts else []


def clusters_claims(rows: Rows) -> list[Finding]:
    """The comparisons of 4.4: clustering methods with the selection by bias, selections with the better methods."""
    findings = []
    for where, network, says, vary, fixed, pairs, alike in CLUSTERS:
        other = "select" if vary == "method" else "method"
        ours: dict[str, dict[int, float]] = {}
        for row in rows:
            if (row["network"], row[other]) == (network, fixed):
                runs = ours.setdefault(row[vary], {})
                runs[len(runs)] = row["None"]
        parts = compared(ours, pairs, unit=" points") | compared(ours, alike, rule=equal(1.0), unit=" points")
        if parts:
            findings.append(claim(where, f"{network}, {says}", parts))
    return findings


_OTHERS = [("kmeans", "spectral"), ("ward", "spectral"), ("kmeans", "gmm"), ("ward", "gmm")]
# place, network, what it says, what varies, at which selection or method, the better first, what is about equal
CLUSTERS: list[tuple[str, str, str, str, str, Pairs, Pairs]] = [
    ("John 2019, Fig. 4.1", "lenet-300-100", "k-means and ward are alike and best", "method", "bias_magnitude", _OTHERS,
     [("kmeans", "ward")]),
    ("John 2019, Fig. 4.2", "lenet5", "ward is better than k-means, both than others", "method", "bias_magnitude",
     [("ward", "kmeans"), *_OTHERS[:2]], []),
    ("John 2019, Fig. 4.3", "lenet-300-100", "k-means: selection by weights beats centres", "select", "kmeans",
     [("weight_norm", "centroid")], []),
    ("John 2019, Fig. 4.4", "lenet5", "ward: selection by weights is best", "select", "ward",
     [("weight_norm", other) for other in ("bias", "centroid", "random")], []),
    ("John 2019, Fig. 4.5", "lenet5", "k-means: selection by bias is best", "select", "kmeans",
     [("bias", other) for other in ("weight_norm", "centroid", "random")], []),
]  # fmt: skip

REPRODUCTIONS: list[Computation] = [
    Computation(
        "prune-mnist",
        "LeNet-300-100 and LeNet-5 on MNIST at the units that the document keeps (John 2019, 5.1 and 5.3).",
        printed_tables,
        ["lenet-300-100", "lenet5"],
        seeds=(0, 1, 2),
        data=["mnist"],
        claims=[tables_claim],
    ),
    Computation(
        "prune-lenet5-like",
        "The LeNet-5-like network of 3.27 million parameters at the units that the document keeps (John 2019, 5.4).",
        printed_tables,
        ["lenet5-like"],
        data=["mnist"],
        claims=[tables_claim],
    ),
    Computation(
        "prune-compensation",
        "784-300-100-10 on MNIST without fine-tuning: every method with every compensation (John 2019, 5.8 to 5.12).",
        compensation,
        ["0.5", "0.25", "0.1"],
        seeds=(0, 1, 2),
        data=["mnist"],
        claims=[compensation_claim],
    ),
    Computation(
        "prune-clusters",
        "Clustering methods and selection criteria at 40% of the units (John 2019, chapter 4).",
        clustering,
        ["lenet-300-100", "lenet5"],
        seeds=range(8),
        data=["mnist"],
        claims=[clusters_claims],
    ),
]
