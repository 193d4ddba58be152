"""002: quantisation by sampling, paths through networks, partition dropout."""

from __future__ import annotations

import copy
import functools
import statistics
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from filigree import data, models
from filigree.compress import MonteCarlo, PathSampling, Rounded
from filigree.compress.sampling import sample
from filigree.convert import compress_, convert_
from filigree.cost import measure
from filigree.dynamics import Constant, Evolution
from filigree.nn import OnlinePaths, PartitionDropout, PartitionedDropout, Sparse
from filigree.report import Chart
from filigree.reproduce.reproduction import Computation, Records, Reproduction, Rows, metric
from filigree.topology import ErdosRenyi, Paths
from filigree.train import evaluate, fit, seed_everything

CALIBRATION = 5000  # samples
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rms": {"calibrate": "rms", "correct_bias": False},
    "rms + bias": {"calibrate": "rms"},
    "handed on": {"calibrate": "handed_on"},
}


def trained(model: nn.Module, split: data.DataSet, epochs: int, seed: int, **options: Any) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    fit(model, split.train, optimizer=optimizer, epochs=epochs, batch_size=128, seed=seed, progress=False, **options)
    return model.eval()


def accuracy(model: nn.Module, split: data.DataSet) -> float:
    return float(evaluate(model, split.test)["accuracy"])


# -- Monte Carlo quantisation --------------------------------------------------------------------------------------


def quantised(model: nn.Module, split: data.DataSet, budgets: Sequence[float], seed: int, per: str = "layer") -> Rows:
    """A row for each calibration and budget: accuracy against what is drawn, kept and stored."""
    whole = accuracy(model, split)
    calibration = split.train.x[torch.randperm(len(split.train.x))[:CALIBRATION]]
    rows: Rows = []
    for kind, options in KINDS.items():
        for budget in budgets:
            small = copy.deepcopy(model)
            config = MonteCarlo(budget, per=per, seed=seed, **options)  # type: ignore[arg-type]
            compress_(small, config, None if kind == "plain" else calibration)
            rows.append({"calibration": kind, "per": per, "budget": str(budget), **_sizes(small, split, whole)})
    for bits in (8, 4, 3):
        small = copy.deepcopy(model)
        compress_(small, Rounded(bits))
        rows.append(
            {"calibration": f"rounded to {bits} bits", "per": per, "budget": "-", **_sizes(small, split, whole)}
        )
    return rows


def _sizes(model: nn.Module, split: data.DataSet, whole: float) -> dict[str, float]:
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "integers") and hasattr(layer, "code")]
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    now = accuracy(model, split)
    return {
        "accuracy %": 100 * now,
        "share of the model's %": 100 * now / whole,
        "samples %": 100 * sum(layer.samples for layer in layers) / weights,
        "kept %": 100 * sum(layer.nnz for layer in layers) / weights,
        "bits a weight": sum(8 * layer.code.numel() * layer.code.element_size() for layer in layers) / weights,
        "kB": measure(model).bytes_disk / 1000,
    }


def quantise_mnist(case: str, seed: int, quick: bool) -> Rows:
    """MLPs of several widths, 4 epochs on MNIST, then quantised without retraining."""
    split = data.load("mnist")
    seed_everything(seed)
    model = trained(models.mlp([int(width) for width in case.split("-")]), split, 1 if quick else 4, seed)
    rows = quantised(model, split, (0.12,) if quick else (0.05, 0.12, 0.2, 0.5, 1.0), seed)
    return [{"network": case, "model's %": 100 * accuracy(model, split), **row} for row in rows]


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
    split = data.load("cifar-10", images=True)
    seed_everything(seed)
    model = trained(lenet_cifar(), split, 1 if quick else 6, seed)
    budgets = (0.5,) if quick else (0.05, 0.12, 0.25, 0.5, 1.0)
    rows = [row for per in ("layer", "filter") for row in quantised(model, split, budgets, seed, per)]
    return [{"model's %": 100 * accuracy(model, split), **row} for row in rows]


def sampling_error(case: str, seed: int, quick: bool) -> Rows:
    """Mean |error| of a random matrix's weights against the samples drawn, by kinds of sample points."""
    w = torch.randn(100, 100, generator=torch.Generator().manual_seed(seed))
    rows = []
    for samples in (1, 2, 4, 8, 16, 32, 64):
        counts, scale = sample(w, samples, "layer", case, torch.Generator().manual_seed(seed + 1))  # type: ignore[arg-type]
        error = float((counts * scale - w).abs().mean())
        rows.append({"points": case, "samples a weight": samples, "mean error": error})
    return rows


# -- paths ---------------------------------------------------------------------------------------------------------

SIZES = [784, 300, 300, 10]


def paths(case: str, seed: int, quick: bool) -> Rows:
    """784-300-300-10 on MNIST: paths through the trained network, networks made of paths, paths of each step."""
    split, epochs = data.load("mnist"), 1 if quick else 4
    seed_everything(seed)
    if case == "through a trained network":
        model = trained(models.mlp(SIZES), split, epochs, seed)
        rows: Rows = [
            {"arm": "dense", "paths": 0, "weights": _weights(model), "accuracy %": 100 * accuracy(model, split)}
        ]
        for count in (10_000,) if quick else (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000):
            for how in ("jittered", "independent"):
                for rescale in (True, False):
                    small = copy.deepcopy(model)
                    compress_(small, PathSampling(count, sampling=how, rescale=rescale, seed=seed))
                    arm = f"{how} paths{', rescaled' if rescale else ''}"
                    rows.append(_row(arm, count, small, split))
        return rows
    if case == "of each step":
        rows = []
        for count in (10_000,) if quick else (3_000, 10_000, 30_000, 100_000):
            model = models.mlp(SIZES)
            convert_(model, OnlinePaths(count))
            rows.append(_row("paths of each step", count, trained(model, split, epochs, seed), split))
        for arm, config in (("dropout 1/2", None), ("partition dropout, P = 2", PartitionDropout(2)),
                            ("partitioned DropConnect, P = 2", PartitionDropout(2, connect=True))):  # fmt: skip
            model = models.mlp(SIZES, dropout=0.0 if arm.startswith("partitioned") else 0.5)
            if config is not None:
                convert_(model, config)
            rows.append(_row(arm, 0, trained(model, split, epochs, seed), split))
        return rows
    rows = []
    for power in (12,) if quick else (10, 12, 14, 16):
        for arm, topology in (
            ("Sobol paths", Paths(2**power)),
            ("Sobol paths, scrambled", Paths(2**power, scramble=True)),
            ("Sobol paths, signs along them", Paths(2**power, weights="sign")),
            ("Sobol paths, constant", Paths(2**power, weights="constant")),
            ("random paths", Paths(2**power, "random")),
        ):
            model = models.mlp(SIZES)
            convert_(model, Sparse(topology, seed=seed))
            rows.append(_row(arm, 2**power, trained(model, split, epochs, seed), split))
            if arm == "Sobol paths":
                sizes = [_weights(layer) for layer in model.children()]
        model = models.mlp(SIZES)
        for layer, weights in zip(list(model.named_children()), sizes, strict=True):
            dense: Any = layer[1]
            if isinstance(dense, nn.Linear) and weights < dense.weight.numel():
                density = weights / dense.weight.numel()
                convert_(model, Sparse(ErdosRenyi(density=density), seed=seed), where=layer[0])
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        evolution = Evolution(model, optimizer, Constant(0.3), epochs, seed=seed)
        fit(model, split.train, optimizer=optimizer, epochs=epochs, batch_size=128, seed=seed, each_epoch=evolution,
            progress=False)  # fmt: skip
        rows.append(_row("SET, as many weights", 2**power, model, split))
    return rows


def _row(arm: str, count: int, model: nn.Module, split: data.DataSet) -> dict[str, Any]:
    return {"arm": arm, "paths": count, "weights": _weights(model), "accuracy %": 100 * accuracy(model.eval(), split)}


def _weights(model: nn.Module) -> float:
    kinds = ("weight", "values")
    return float(sum(p.numel() for name, p in model.named_parameters() if name.rpartition(".")[2] in kinds))


# -- partition dropout ---------------------------------------------------------------------------------------------

SHORT, BATCH = 0.606, 64  # the printed mean accuracy


def partitions(case: str, seed: int, quick: bool) -> Rows:
    """LeNet on MNIST with dropout 1/t and with t partitions, t = 2 to 9.

    Case "short" trains for as many steps as dropout 1/4 needs to reach the printed mean accuracy; "converged" for
    400.
    """
    split = data.load("mnist", images=True)
    steps = _short_budget() if case == "short" else (50 if quick else 400)
    rows = []
    for t in range(2, 10):
        for arm in ("dropout", "partitions"):
            model, drawn = _lenet(split, seed, arm, t, steps)
            result = accuracy(model, split)
            rows.append({"budget": case, "steps": steps, "arm": arm, "t": t, "accuracy %": 100 * result,
                         "random numbers drawn": float(drawn)})  # fmt: skip
    return rows


def _lenet(
    split: data.DataSet, seed: int, arm: str, t: int, steps: int, curve: list[float] | None = None
) -> tuple[nn.Module, int]:
    """A LeNet after so many steps, and the random numbers that were drawn; `curve` takes its accuracy at each step.

    Initial values and batches are the same in all runs: they differ by what dropout draws, and by nothing else.
    """
    seed_everything(0)
    model: Any = models.lenet_caffe(split.train.x.shape[1])
    model.relu1 = nn.Sequential(nn.ReLU(), nn.Dropout(1 / t))
    if arm == "partitions":
        convert_(model, PartitionDropout(t))
    optimizer = torch.optim.SGD(model.parameters(), 0.002, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    torch.manual_seed(seed)
    for _ in range(steps):
        places = torch.randint(len(split.train.x), (BATCH,), generator=order)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(split.train.x[places]), split.train.y[places]).backward()
        optimizer.step()
        if curve is not None:
            few = data.Split(split.test.x[:2000], split.test.y[:2000])
            curve.append(float(evaluate(model.eval(), few)["accuracy"]))
    drawn = sum(m.drawn for m in model.modules() if isinstance(m, PartitionedDropout)) or steps * BATCH * 500
    return model.eval(), drawn


@functools.cache
def _short_budget() -> int:
    """The steps after which the mean accuracy of three networks with dropout 1/4 is the printed one."""
    split = data.load("mnist", images=True)
    curves: list[list[float]] = [[], [], []]
    for seed, curve in enumerate(curves):
        _lenet(split, 100 + seed, "dropout", 4, 50, curve)
    means = [statistics.fmean(at) for at in zip(*curves, strict=True)]
    return next((step + 1 for step, mean in enumerate(means) if mean >= SHORT), len(means))


def variance_claim(rows: Rows) -> str:
    """Mean over t of the accuracy, and of its deviation over the runs."""
    lines = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        parts = []
        for arm in ("dropout", "partitions"):
            its = [row for row in rows if row["budget"] == budget and row["arm"] == arm]
            groups = [[r["accuracy %"] for r in its if r["t"] == t] for t in range(2, 10)]
            if any(len(group) < 2 for group in groups):
                return "Two runs at least are needed for a deviation."
            spread = statistics.fmean(statistics.stdev(group) for group in groups)
            mean = statistics.fmean(map(statistics.fmean, groups))
            drawn = statistics.fmean(r["random numbers drawn"] for r in its)
            parts.append(f"{arm} {mean:.2f} ± {spread:.2f} ({drawn:,.0f} numbers drawn)")
        lines.append(f"{budget}, {its[0]['steps']} steps: {', '.join(parts)}")
    return f"{'; '.join(lines)}. Printed: 60.62 ± 1.06 and 60.57 ± 0.90."


# -- claims --------------------------------------------------------------------------------------------------------


def quantisation_claim(rows: Rows) -> str:
    """What is left of the model at 12% of its weights."""
    parts = []
    for network in dict.fromkeys(row["network"] for row in rows):
        found = {
            kind: [r["share of the model's %"] for r in rows
                   if (r["network"], r["calibration"], r["budget"]) == (network, kind, "0.12")]
            for kind in KINDS
        }  # fmt: skip
        shares = ", ".join(f"{kind} {statistics.fmean(values):.1f}" for kind, values in found.items() if values)
        parts.append(f"{network}: {shares}")
    return f"Share of the model's accuracy at a budget of 12%, in %: {'; '.join(parts)} (printed: 97 at 12%)."


def cifar_claim(rows: Rows) -> str:
    best = statistics.fmean(row["model's %"] for row in rows)
    found = [
        r["share of the model's %"]
        for r in rows
        if (r["calibration"], r["budget"], r["per"]) == ("plain", "0.5", "layer")
    ]
    share = f"{statistics.fmean(found):.1f}" if found else "-"
    return f"The model: {best:.2f}% (printed 69.12); at 50% sampled, plain, {share}% of that is left (printed 88)."


def fan_in_claim(records: Records) -> str:
    parts = []
    for runs in records.values():
        for method, its in runs.items():
            if found := metric(its, "test_accuracy"):
                size = its[0].cost.get("parameters", 0)
                parts.append(f"{method} {100 * statistics.fmean(found):.2f}% with {size:,} parameters")
    return "; ".join(parts) + "."


REPRODUCTIONS: list[Computation | Reproduction] = [
    Computation(
        "quantise-mnist",
        "MLPs on MNIST as sampled integers, no retraining, plain and calibrated (002: 97% of the accuracy at 12%).",
        quantise_mnist,
        ["784-300-100-10", "784-1024-10", "784-1024-1024-10"],
        seeds=(0, 1, 2),
        charts=[
            Chart("kept %", "share of the model's %", ["network", "calibration"], "accuracy against weights kept"),
            Chart("kB", "accuracy %", ["network", "calibration"], "accuracy against bytes on disk"),
        ],
        claims=[quantisation_claim],
    ),
    Computation(
        "quantise-cifar",
        "LeNet on CIFAR-10 as sampled integers, by layer and by filter (002: 88% of the accuracy at 50% sampled).",
        quantise_cifar,
        ["lenet"],
        charts=[Chart("samples %", "share of the model's %", ["calibration", "per"], "accuracy against samples")],
        claims=[cifar_claim],
    ),
    Computation(
        "sampling-error",
        "The error of sampled weights: 1/N for jittered points, 1/sqrt(N) for independent ones (002).",
        sampling_error,
        ["jittered", "stratified", "independent"],
        seeds=(0, 1, 2, 3, 4),
        charts=[Chart("samples a weight", "mean error", ["points"], "error by samples", log=True)],
    ),
    Computation(
        "paths-mnist",
        "784-300-300-10 on MNIST: paths through a trained network, from scratch, and of each step (002).",
        paths,
        ["through a trained network", "from scratch", "of each step"],
        seeds=(0, 1),
        charts=[
            Chart("paths", "accuracy %", ["arm"], "accuracy by paths"),
            Chart("weights", "accuracy %", ["arm"], "accuracy by weights"),
        ],
    ),
    Computation(
        "partition-dropout",
        "LeNet on MNIST, dropout 1/t against t partitions, t = 2 to 9 (002).",
        partitions,
        ["short", "converged"],
        seeds={"short": (0, 1, 2, 3, 4), "converged": (0, 1, 2)},
        charts=[Chart("t", "accuracy %", ["budget", "arm"], "accuracy by t")],
        claims=[variance_claim],
    ),
    Reproduction(
        "alexnet-fan-in",
        "A small AlexNet on CIFAR-10 with a constant number of inputs to each unit (002).",
        "alexnet-fan-in",
        {"alexnet": []},
        {"alexnet": {}},
        ["training.epochs=1"],
        [fan_in_claim],
        ("The document's curves are lost; there is nothing printed to set beside.",),
    ),
]  # fmt: skip
