"""Srivastava 2022: what the parts of a backward pass cost, selection and products apart (Fig. 9.9, 9.5.1, 9.5.3)."""

from __future__ import annotations

from statistics import fmean as mean
from typing import Any

import torch
from torch import nn

from filigree.measure.timing import time_interleaved
from filigree.nn.asymmetric.asymmetric import Asymmetric, backward_times
from filigree.ops import selection
from filigree_papers.reproduce.claims import compared
from filigree_papers.reproduce.experiment import Rows
from filigree_papers.reproduce.findings import Finding, Verdict, at_least, claim, count, equal, figure, judged, spread
from filigree_papers.reproduce.reproduction import Computation

ARMS = {
    "top-k 40": Asymmetric.topk(40),
    "partial 40 / 200": Asymmetric.partial(40, 200),
    "complete 170": Asymmetric.complete(170),
}
# Fig. 9.9, read off: seconds of the products ("JVP") and of the selection, on MNIST, 784-512-10
PRINTED = {
    "symmetric": (4800, 0),
    "top-k 40": (480, 2500),
    "partial 40 / 200": (400, 2800),
    "complete 170": (1400, 3200),
}
SIZES = {"784-512, batch 32": (784, 512, 32), "2048-2048, batch 128": (2048, 2048, 128)}


def costs(case: str, seed: int, quick: bool) -> Rows:
    """One linear layer's backward pass: its time, that of selecting, and the multiply-adds of both products.

    `backward_times` contains the choice of neurons; inputs are chosen in the forward pass and W's entries once a step,
    so their times are added.
    """
    n_in, n_out, batch = SIZES[case]
    torch.manual_seed(seed)
    seconds = 0.02 if quick else 0.3
    layer, x, delta = nn.Linear(n_in, n_out), torch.randn(batch, n_in), torch.randn(batch, n_out)
    whole = backward_times(layer, ARMS, batch, seconds=seconds)
    rows: Rows = [
        {"size": case, "arm": "symmetric", "backward ms": whole["dense"], "selection ms": 0.0,
         "products ms": whole["dense"], "multiply-adds": float(2 * n_in * n_out)}
    ]  # fmt: skip
    for arm, config in ARMS.items():
        works = [lambda f=f, t=t: f.kept(t) for f, t in _selected(config, x, delta, layer.weight.detach())]
        of_delta, *besides = [timing.median for timing in time_interleaved(works, seconds)]
        kept_delta, kept_x = (
            tensor if function is None else selection.dense(function.kept(tensor))
            for function, tensor in ((config.sensitivity, delta), (config.inputs, x))
        )
        weights = layer.weight.detach().t()  # each input's column of W
        column = weights if config.weights is None else selection.dense(config.weights.kept(weights.contiguous()))
        both = (kept_delta != 0).float()
        of_weight = both.sum(1) @ (kept_x != 0).float().sum(1) / batch
        of_input = (both @ (column != 0).float().t()).sum() / batch
        rows.append({
            "size": case, "arm": arm, "backward ms": whole[arm] + sum(besides),
            "selection ms": of_delta + sum(besides), "products ms": max(whole[arm] - of_delta, 0.0),
            "multiply-adds": float(of_weight + of_input),
        })  # fmt: skip
    return rows


def _selected(config: Asymmetric, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> list[tuple[Any, Any]]:
    pairs = [(config.sensitivity, delta), (config.inputs, x), (config.weights, weight.t().contiguous())]
    return [(function, tensor) for function, tensor in pairs if function is not None]


def _by_arm(rows: Rows, key: str, size: str) -> dict[str, list[float]]:
    own = [row for row in rows if row["size"] == size]
    return {arm: [row[key] for row in own if row["arm"] == arm] for arm in PRINTED if own}


def parts_claim(rows: Rows) -> list[Finding]:
    """Fig. 9.9: the selection's share of the backward time."""
    findings = []
    for arm, (products, selecting) in list(PRINTED.items())[1:]:
        whole, chosen = (_by_arm(rows, key, "784-512, batch 32").get(arm) for key in ("backward ms", "selection ms"))
        if whole and chosen:
            shares = [100 * part / all_of_it for part, all_of_it in zip(chosen, whole, strict=True)]
            printed = 100 * selecting / (products + selecting)
            what = f"{arm}, selection as a share of its backward time in %"
            findings.append(figure("Srivastava 2022, Fig. 9.9", what, printed, shares, percent=True))
    return findings


def products_claim(rows: Rows) -> list[Finding]:
    """9.5.3: products are almost 10 times cheaper by top-k, 12 times by partial; complete is about as slow in all."""
    parts: dict[str, Verdict] = {}
    size = "784-512, batch 32"
    products, whole = (_by_arm(rows, key, size) for key in ("products ms", "backward ms"))
    if not products:
        return []
    for arm, times in (("top-k 40", 10), ("partial 40 / 200", 12)):
        ratios = [a / max(b, 1e-6) for a, b in zip(products["symmetric"], products[arm], strict=True)]
        parts |= judged(f"{arm} {spread(ratios)} times cheaper (printed {times})", at_least(times), ratios)
    ratio = {
        "complete": dict(enumerate(a / b for a, b in zip(whole["complete 170"], whole["symmetric"], strict=True))),
        "symmetric": dict(enumerate(1.0 for _ in whole["symmetric"])),
    }
    parts |= compared(ratio, [("complete", "symmetric")], rule=equal(0.2), unit=" of symmetric's backward time")
    return [claim("Srivastava 2022, section 9.5.3", "Products alone, and all of complete's backward pass", parts)]


def operations_claim(rows: Rows) -> list[Finding]:
    """9.5.1: the multiply-adds of both products, counted in what was selected, beside k n_in and its kind."""
    formulas = {
        "top-k 40": lambda n_in: 2 * 40 * n_in,  # O(k n_in), of dL/dW and dL/dx
        "partial 40 / 200": lambda n_in: 40 * 200 + 40 * n_in,  # O(k1 k2), and the O(k1 n_in) that is omitted
    }
    findings = []
    for size, (n_in, _, _) in SIZES.items():
        for arm, formula in formulas.items():
            if ours := _by_arm(rows, "multiply-adds", size).get(arm):
                what = f"{size}, {arm}, multiply-adds of a sample"
                findings.append(count("Srivastava 2022, section 9.5.1", what, formula(n_in), mean(ours)))
    return findings


REPRODUCTIONS = [
    Computation(
        "asymmetric-costs",
        "Selection and products of backward passes apart, in time and multiply-adds (Srivastava 2022, Fig. 9.9, 9.5).",
        costs, list(SIZES), seeds=(0, 1, 2),
        claims=[parts_claim, products_claim, operations_claim],
        notes=("The time of the products is that of the backward pass less that of choosing neurons.",),
    ),
]  # fmt: skip
