"""Keller et al.: paths through networks, and dropout by partitions."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from filigree import data, models
from filigree.compress import PathSampling
from filigree.convert import convert_
from filigree.dynamics import Constant, Evolution
from filigree.nn import PartitionedDropout
from filigree.nn.dropout.partition_dropout import PartitionDropout
from filigree.nn.sparse.online_paths import OnlinePaths
from filigree.nn.sparse.sparse import Sparse
from filigree.report import Chart
from filigree.topology import ErdosRenyi, Paths
from filigree.train import evaluate, fit, seed_everything
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.findings import (
    Finding,
    claim,
    difference,
    equal,
    figure,
    judged,
    positive,
    share,
    unprinted,
)
from filigree_papers.reproduce.reproduction import Computation
from filigree_papers.reproduce.steps import adam, compressed, fewer, percent

# -- paths ---------------------------------------------------------------------------------------------------------

SIZES = [784, 300, 300, 10]


def paths(case: str, seed: int, quick: bool) -> Rows:
    """784-300-300-10 on MNIST: paths through the trained network, networks made of paths, paths of each step."""
    split, epochs = fewer(data.load("mnist"), quick), 1 if quick else 4
    seed_everything(seed)
    if case == "through a trained network":
        model = adam(models.mlp(SIZES), split, epochs, seed)
        rows: Rows = [
            {"arm": "dense", "paths": 0, "weights": _weights(model), "accuracy %": percent(model, split.test)}
        ]
        for count in (10_000,) if quick else (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000):
            for how in ("jittered", "independent"):
                for rescale in (True, False):
                    small = compressed(model, PathSampling(count, sampling=how, rescale=rescale, seed=seed))
                    rows.append(_row(f"{how} paths{', rescaled' if rescale else ''}", count, small, split))
        return rows
    if case == "of each step":
        rows = []
        for count in (10_000,) if quick else (3_000, 10_000, 30_000, 100_000):
            model = models.mlp(SIZES)
            convert_(model, OnlinePaths(count))
            rows.append(_row("paths of each step", count, adam(model, split, epochs, seed), split))
        for arm, config in (("dropout 1/2", None), ("partition dropout, P = 2", PartitionDropout(2)),
                            ("partitioned DropConnect, P = 2", PartitionDropout(2, connect=True))):  # fmt: skip
            model = models.mlp(SIZES, dropout=0.0 if arm.startswith("partitioned") else 0.5)
            if config is not None:
                convert_(model, config)
            rows.append(_row(arm, 0, adam(model, split, epochs, seed), split))
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
            rows.append(_row(arm, 2**power, adam(model, split, epochs, seed), split))
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
        fit(model, split.train, optimizer=optimizer, epochs=epochs, batch_size=128, seed=seed, callbacks=evolution,
            progress=False)  # fmt: skip
        rows.append(_row("SET, as many weights", 2**power, model, split))
    return rows


def _row(arm: str, count: int, model: nn.Module, split: data.DataSet) -> dict[str, Any]:
    return {"arm": arm, "paths": count, "weights": _weights(model), "accuracy %": percent(model.eval(), split.test)}


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
    split = fewer(data.load("mnist", images=True), quick)
    steps = 20 if quick else _short_budget() if case == "short" else 400
    rows = []
    for t in range(2, 10):
        for arm in ("dropout", "partitions"):
            model, drawn = _lenet(split, seed, arm, t, steps)
            result = percent(model, split.test)
            rows.append({"budget": case, "steps": steps, "arm": arm, "t": t, "accuracy %": result,
                         "random numbers drawn": float(drawn)})  # fmt: skip
    return rows


def _lenet(
    split: data.DataSet, seed: int, arm: str, t: int, steps: int, curve: list[float] | None = None
) -> tuple[nn.Module, int]:
    """A LeNet after so many steps, and how many random numbers were drawn; `curve` receives the accuracy at each step.

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
        chosen = torch.randint(len(split.train.x), (BATCH,), generator=order)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(split.train.x[chosen]), split.train.y[chosen]).backward()
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


# -- claims --------------------------------------------------------------------------------------------------------


PRINTED_DROPOUT = {"dropout": 60.62, "partitions": 60.57}


def dropout_claims(rows: Rows) -> list[Finding]:
    """Accuracies and their deviations over the runs, each a mean over t; the random numbers that were drawn."""
    findings = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        own = [row for row in rows if row["budget"] == budget]
        by_t = {arm: [[r["accuracy %"] for r in own if (r["arm"], r["t"]) == (arm, t)] for t in range(2, 10)]
                for arm in PRINTED_DROPOUT}  # fmt: skip
        apart = [statistics.fmean(column) for column in zip(*map(_differences, *by_t.values()), strict=True)]
        if not apart:
            continue
        slide = "Keller et al., slide 'Guaranteeing coverage'"
        steps = f"LeNet after {own[0]['steps']} steps"
        if budget == "short":
            for arm, printed in PRINTED_DROPOUT.items():
                runs = [statistics.fmean(column) for column in zip(*by_t[arm], strict=True)]
                findings.append(figure(slide, f"{steps}, {arm}, mean accuracy in %", printed, runs, percent=True))
            text = f"partitions minus dropout {difference(apart, ' points')} (printed -0.05)"
            findings.append(claim(slide, f"{steps}, as accurate", judged(text, equal(1.0), apart)))
        drawn = [[r["random numbers drawn"] for r in own if r["arm"] == arm] for arm in PRINTED_DROPOUT]
        parts = {f"random numbers, {statistics.fmean(drawn[1]):,.0f} against {statistics.fmean(drawn[0]):,.0f}": share(
            [b < a for a, b in zip(*drawn, strict=True)])}  # fmt: skip
        if len(apart) > 1:
            spreads = [[statistics.stdev(runs) for runs in by_t[arm]] for arm in PRINTED_DROPOUT]
            less = [a - b for a, b in zip(*spreads, strict=True)]
            text = f"deviation, dropout's minus partitions' over t {difference(less)} (printed 1.06 and 0.90)"
            parts |= judged(text, positive, less)
        findings.append(claim("Keller et al., summary 1", f"{steps}, dropout partitions need less", parts))
    return findings


def _differences(dropout: Sequence[float], partitions: Sequence[float]) -> list[float]:
    return [b - a for a, b in zip(dropout, partitions, strict=True)]


def paths_claim(rows: Rows) -> list[Finding]:
    """The curves are lost: the fewest paths that come within a point of the dense network."""
    dense = [row["accuracy %"] for row in rows if row["arm"] == "dense"]
    if not dense:
        return []
    texts = []
    for arm in dict.fromkeys(row["arm"] for row in rows if row["paths"]):
        means = {n: statistics.fmean([r["accuracy %"] for r in rows if (r["arm"], r["paths"]) == (arm, n)])
                 for n in dict.fromkeys(r["paths"] for r in rows if r["arm"] == arm)}  # fmt: skip
        enough = [n for n, accuracy in means.items() if accuracy >= statistics.fmean(dense) - 1]
        texts.append(f"{arm} {min(enough):,}" if enough else f"{arm} none of up to {max(means):,}")
    text = f"Paths within a point of dense ({statistics.fmean(dense):.2f}%): {', '.join(texts)}."
    return [unprinted("Keller et al., slide 'Test accuracy for 4 layer'", text)]


REPRODUCTIONS: list[Computation] = [
    Computation(
        "paths-mnist",
        "784-300-300-10 on MNIST: paths through a trained network, from scratch, and of each step (Keller et al.).",
        paths,
        ["through a trained network", "from scratch", "of each step"],
        seeds=(0, 1),
        data=["mnist"],
        charts=[
            Chart("paths", "accuracy %", ["arm"], "accuracy by paths"),
            Chart("weights", "accuracy %", ["arm"], "accuracy by weights"),
        ],
        claims=[paths_claim],
    ),
    Computation(
        "partition-dropout",
        "LeNet on MNIST, dropout 1/t against t partitions, t = 2 to 9 (Keller et al.).",
        partitions,
        ["short", "converged"],
        seeds={"short": (0, 1, 2, 3, 4), "converged": (0, 1, 2)},
        data=["mnist"],
        charts=[Chart("t", "accuracy %", ["budget", "arm"], "accuracy by t")],
        claims=[dropout_claims],
    ),
]
