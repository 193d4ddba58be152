"""Chouliaras 2021: dense networks against sparse ones that evolve, on seven data sets; and their parameter counts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from filigree.train import Record
from filigree_papers.counts import counts
from filigree_papers.reproduce.claims import (
    Pairs,
    by_run,
    compared,
    cost,
    folds_of,
    ratios,
    test_accuracy,
    train_seconds,
)
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
    spread,
    unprinted,
)
from filigree_papers.reproduce.reproduction import Computation, Records, Reproduction

SPARSE = ("SET", "LDV", "OSV", "EXD")
UNTIMED = "Times were not taken: the machine did other work at the same time."

OfRecords = Callable[[Records], list[Finding]]


def order(where: str, says: str, pairs: Pairs, alike: Pairs = ()) -> OfRecords:
    """Of each pair the first is more accurate on test data; those of `alike` are about equal."""

    def findings(records: Records) -> list[Finding]:
        ours, folds = by_run(records, test_accuracy), folds_of(records)
        parts = compared(ours, pairs, unit=" points", folds=folds)
        parts |= compared(ours, alike, rule=equal(1.0), unit=" points", folds=folds)
        return [claim(where, says, parts)] if parts else []

    return findings


def _training(run: Record) -> float | None:
    """The time of training: of all of it, or of a step where the rest was not timed."""
    return seconds if (seconds := train_seconds(run)) is not None else cost("train_step_ms")(run)


def faster(where: str, training: dict[str, float], inference: dict[str, float] | None = None) -> OfRecords:
    """Each method takes at least so many percent less time than dense; `inference=None` says that it is about equal."""

    def findings(records: Records) -> list[Finding]:
        parts: dict[str, Verdict] = {}
        folds = folds_of(records)
        if records and not by_run(records, cost("batch_ms")):
            return [unprinted(where, UNTIMED)]
        for what, of, wanted in (
            ("training", _training, training), ("inference", cost("batch_ms"), inference or {}),
        ):  # fmt: skip
            times = by_run(records, of)
            for method, percent in wanted.items():
                saved = [100 * (1 - ratio) for ratio in ratios(times, method, "dense")]
                if saved:
                    text = f"{method}, {what} {spread(saved, folds)} (printed {percent:g})"
                    parts |= judged(text, at_least(percent), saved, folds)
        if inference is None:
            logs = by_run(
                records, lambda run: math.log(run.cost["batch_ms"]["median"]) if "batch_ms" in run.cost else None
            )
            unit = " in the log of inference time"
            parts |= compared(logs, [("SET", "dense")], rule=equal(0.1), unit=unit, folds=folds)
        return [claim(where, "Time that is saved against dense, %", parts)] if parts else []

    return findings


@dataclass(frozen=True)
class Claims:
    """What Chouliaras 2021 says about a data set.

    Attributes:
        accuracy, times: the figures with the accuracies and with the times.
        training, inference: the time that each sparse method saves, in percent.
        says: the order of the methods, in words; `pairs` and `alike` as of `order`.
    """

    about: str
    accuracy: str
    times: str
    training: float
    inference: float
    says: str
    pairs: Pairs
    alike: Pairs = ()

    def all(self) -> list[OfRecords]:
        savings = (dict.fromkeys(SPARSE, percent) for percent in (self.training, self.inference))
        return [
            order(f"Chouliaras 2021, {self.accuracy}", self.says, self.pairs, self.alike),
            faster(f"Chouliaras 2021, {self.times}", *savings),
        ]


DATA = {
    "lung": Claims("LUNG, batch 2", "Fig. 5.1", "Fig. 5.2", 60, 70, "dense is best, then LDV",
                   [("dense", "LDV"), ("LDV", "SET")]),
    "orl": Claims("ORL faces, batch 2", "Fig. 5.3", "Fig. 5.4", 62, 50, "dense fails, EXD is best, LDV worst",
                  [("SET", "dense"), ("EXD", "SET"), ("SET", "LDV")]),
    "prostate-ge": Claims("Prostate-GE, batch 2", "Fig. 5.5", "Fig. 5.6", 20, 80, "dense is best, then EXD",
                          [("dense", "EXD"), ("EXD", "SET")]),
    "fashion-3x1000": Claims("Fashion-MNIST, 3 x 1000", "Fig. 5.9", "Fig. 5.10", 54, 0,
                             "dense is worse, no sparse method is best", [("SET", "dense")],
                             [(method, "SET") for method in SPARSE[1:]]),
    "fashion-4000-1000-4000": Claims("Fashion-MNIST augmented, 4000-1000-4000", "Fig. 5.14", "Fig. 5.15",
                                     50, 30, "EXD is best", [("EXD", other) for other in ("SET", "dense")]),
}  # fmt: skip


def glioma(records: Records) -> list[Finding]:
    """SET a fifth and EXD a quarter faster, inference equal; dense at 0.7, EXD the best of the sparse ones."""
    dense = [*by_run(records, test_accuracy).get("dense", {}).values()]
    what = "dense, test accuracy in %"
    where, folds = "Chouliaras 2021, Fig. 5.7", folds_of(records)
    return [
        *([figure(where, what, 70, dense, percent=True, folds=folds)] if dense else []),
        *order(where, "EXD is the best sparse method", [("EXD", "SET")])(records),
        *faster("Chouliaras 2021, Fig. 5.8", {"SET": 20, "EXD": 25})(records),
    ]


def exd_reaches(records: Records) -> list[Finding]:
    """EXD reaches an accuracy of about 90.5% (5.3.2)."""
    ours = [*by_run(records, test_accuracy).get("EXD", {}).values()]
    return [figure("Chouliaras 2021, Fig. 5.14", "EXD, test accuracy in %", 90.5, ours, percent=True)] if ours else []


def four_layers(records: Records) -> list[Finding]:
    """EXD is the most accurate, and up to 10% faster than SET."""
    findings = order("Chouliaras 2021, Fig. 5.17", "EXD is best", [("EXD", other) for other in SPARSE[:3]])(records)
    where, times = "Chouliaras 2021, Fig. 5.16", by_run(records, train_seconds)
    if parts := compared(times, [("SET", "EXD")], unit=" s"):
        findings.append(claim(where, "EXD trains faster than SET (printed: up to 10%)", parts))
    elif findings:
        findings.append(unprinted(where, UNTIMED))
    return findings


def implementations(records: Records) -> list[Finding]:
    """Figs. 5.12, 5.13 and 5.15: the time of masked and of truly sparse networks against dense ones."""
    findings = []
    for where, of, what, rebuilt in (
        ("Chouliaras 2021, Fig. 5.12", train_seconds, "training", 16),
        ("Chouliaras 2021, Fig. 5.13", cost("batch_ms"), "inference", 40),
    ):  # fmt: skip
        times = by_run(records, of)
        for method, printed in (("masked, rebuilt", rebuilt), ("masked, in the loop", 0)):
            more = [100 * (ratio - 1) for ratio in ratios(times, method, "dense")]
            if more:
                findings.append(figure(where, f"{method}, {what} time above dense's in %", printed, more))
    return findings + faster("Chouliaras 2021, Fig. 5.15", {"truly sparse": 50}, {"truly sparse": 30})(records)


def late(records: Records) -> list[Finding]:
    """3.5.1: not rewiring in the last 1, 5 or 10 of 500 epochs makes no difference, in the last 50 or 100 it hurts."""
    ours = by_run(records, test_accuracy)
    alike = compared(ours, [("last 5", "last 1"), ("last 10", "last 1")], rule=equal(1.0), unit=" points")
    worse = compared(ours, [("last 1", "last 50"), ("last 1", "last 100")], unit=" points")
    says = "Not rewiring in the last 5 or 10 of 500 epochs is as good as in the last alone, in the last 50 or 100 worse"
    return [claim("Chouliaras 2021, section 3.5.1", says, alike | worse)] if alike or worse else []


def escape(records: Records) -> list[Finding]:
    """Fig. 5.18: the epochs to leave the plateau, about 30 with SET and LDV and 10 with OSV and EXD."""
    where = "Chouliaras 2021, Fig. 5.18"
    ours = by_run(records, lambda run: run.metrics.get("escape_epoch"))
    printed = {"SET": 30, "LDV": 30, "OSV": 10, "EXD": 10}
    findings = [
        figure(where, f"{method}, epochs to escape", number, [*ours[method].values()])
        for method, number in printed.items()
        if method in ours
    ]
    parts = compared(ours, [(slow, quick) for slow in ("SET", "LDV") for quick in ("OSV", "EXD")], unit=" epochs")
    return [*findings, claim(where, "EXD and OSV escape before SET and LDV", parts)] if parts else findings


def best(records: Records) -> list[Finding]:
    """6.1: EXD is the best in accuracy and time; here each method has its best learning rate."""
    ours, times = by_run(records, test_accuracy), by_run(records, train_seconds)
    apart = [ours["EXD"][run] - ours["dense"][run] for run in ours.get("EXD", {}) if run in ours.get("dense", {})]
    parts = compared(ours, [("EXD", "SET"), ("EXD", "Static")], unit=" points")
    if apart:
        parts |= judged(f"within a point of dense: {difference(apart, ' points')}", at_least(-1), apart)
        if less := [1 - ratio for ratio in ratios(times, "EXD", "dense")]:
            parts |= judged(f"in {1 - statistics.fmean(less):.2f} of dense's training time", positive, less)
    says = "EXD is best overall, on Fashion-MNIST 3 x 1000"
    return [claim("Chouliaras 2021, section 6.1", says, parts)] if parts else []


def parameters(case: str, seed: int, quick: bool) -> Rows:
    """Appendix B: parameters of the seven networks; sparse ones drawn distinct, or with duplicates that merge."""
    return [
        {
            "network": row.setting, "dense": float(row.dense), "dense, printed": float(row.printed_dense),
            "sparse, distinct": float(row.distinct), "sparse, merged": float(row.merged),
            "sparse, printed": float(row.printed_sparse),
        }
        for row in counts(seed=seed)
    ]  # fmt: skip


def parameters_claim(rows: Rows) -> list[Finding]:
    where, findings = "Chouliaras 2021, appendix B", []
    for network in dict.fromkeys(row["network"] for row in rows):
        draws = [row for row in rows if row["network"] == network]
        dense, sparse = draws[0]["dense, printed"], draws[0]["sparse, printed"]
        findings.append(count(where, f"{network}, dense", dense, draws[0]["dense"]))
        means = (statistics.fmean(row[f"sparse, {way}"] for row in draws) for way in ("distinct", "merged"))
        nearer = min(means, key=lambda number: abs(number - sparse))
        findings.append(count(where, f"{network}, sparse, mean over draws", sparse, nearer))
        if network == "Fashion 4000-1000-4000":
            what = f"{network}, times fewer parameters"
            findings.append(count("Chouliaras 2021, Fig. 5.11", what, 32, dense / nearer))
    return findings


_SMALL = ["training.epochs=1", "seeds=[0]", "data.name=digits", "data.augment=false"]  # of the large networks
_FOLDS = ["training.epochs=2", "training.lr=0.001", "data.folds=2", "data.repeats=1", "search={}"]
_CLAIMS: dict[str, tuple[str, list[OfRecords]]] = {name: (claims.about, claims.all()) for name, claims in DATA.items()}
_CLAIMS["fashion-4000-1000-4000"][1].append(exd_reaches)
_CLAIMS["glioma"] = ("GLIOMA, batch 2", [glioma])
_CLAIMS["fashion-4x4000"] = ("Fashion-MNIST, 4 x 4000", [four_layers])


def _compared(name: str, short: bool) -> Reproduction:
    about, claims = _CLAIMS[name]
    dense = "" if name == "fashion-4x4000" else "dense, "  # the document has none there
    return Reproduction(
        f"{name}-short" if short else name,
        f"{about}: {dense}Static, SET, LDV, OSV, EXD, {30 if short else 500} epochs (Chouliaras 2021, 5.3).",
        f"{name}-short" if short else name, {"all": []}, quick=_SMALL if name.startswith("fashion") else _FOLDS,
        claims=claims, long=not short,
    )  # fmt: skip


REPRODUCTIONS: list[Computation | Reproduction] = [
    *(_compared(name, short) for name in _CLAIMS for short in (True, False)),
    Reproduction(
        "implementations",
        "Masked, rebuilt and in the loop, and truly sparse, against dense (Chouliaras 2021, 5.3.2 and 5.3.3).",
        "implementations", {"fashion": []}, quick=["training.epochs=1", "data.name=digits"], claims=[implementations],
    ),
    Reproduction(
        "plateau", "How long a deep sparse network stays near chance (Chouliaras 2021, 5.3.4), scaled.", "plateau",
        {"digits": []}, quick=["seeds=[0,1]"], claims=[escape],
    ),
    Reproduction(
        "fashion-best-lr", "Fashion-MNIST, 3 x 1000: each method with its best learning rate (Chouliaras 2021, 6.1).",
        "fashion-best-lr", {"fashion": []}, quick=[*_SMALL, "data.validation=0.2"], claims=[best],
    ),
    Reproduction(
        "late-rewiring", "SET that stops to rewire before the end, 500 epochs of digits (Chouliaras 2021, 3.5.1).",
        "late-rewiring", {"digits": []}, quick=["training.epochs=120", "seeds=[0]"], claims=[late],
    ),
    Computation(
        "parameter-counts", "Parameters of the networks of Chouliaras 2021, counted (appendix B).", parameters,
        ["appendix B"], seeds=(0, 1, 2), claims=[parameters_claim],
    ),
]  # fmt: skip
