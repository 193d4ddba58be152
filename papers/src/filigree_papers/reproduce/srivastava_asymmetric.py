"""Srivastava 2022: asymmetric training (chapter 9), on MNIST and on 25 networks for Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean as mean

import scipy  # `scipy.stats` loads at its first use: it takes longer than `import torch`

from filigree.train import Record
from filigree_papers.reproduce.claims import by_run, compared, cost, ratios, test_accuracy
from filigree_papers.reproduce.findings import Finding, Verdict, claim, figure
from filigree_papers.reproduce.reproduction import Records, Reproduction, metric

ARMS = ("symmetric", "topk", "partial", "complete")
OWN = ("topk", "partial", "complete")
SHARES = {"topk": 0.60, "partial": 0.28, "symmetric": 0.12}  # of the 25 networks, which each arm wins (section 9.6)

# tables 9.3 to 9.52: test accuracies and seconds of backward passes, of the four arms; .8568 of l3-512 is the middle of
# its printed interval
_FASHION = {
    "l1-64": ((0.8500, 0.8740, 0.8202, 0.8457), (706.04, 435.96, 452.66, 646.07)),
    "l2-64": ((0.8374, 0.8552, 0.8298, 0.8268), (1259.81, 792.91, 815.31, 1147.31)),
    "l3-64": ((0.8284, 0.8409, 0.8307, 0.8142), (1954.64, 1208.12, 1249.29, 1788.04)),
    "l4-64": ((0.8295, 0.8412, 0.8299, 0.8172), (2643.79, 1636.47, 1691.16, 2416.27)),
    "l5-64": ((0.8215, 0.8381, 0.8302, 0.7961), (3335.98, 2060.71, 2131.40, 3046.87)),
    "l1-128": ((0.8823, 0.8891, 0.8475, 0.8550), (1412.07, 871.91, 905.32, 1292.13)),
    "l2-128": ((0.8530, 0.8686, 0.8459, 0.8445), (2477.62, 1536.79, 1587.64, 2268.53)),
    "l3-128": ((0.8451, 0.8548, 0.8460, 0.8347), (3811.12, 2364.23, 2446.35, 3481.34)),
    "l4-128": ((0.8464, 0.8549, 0.8461, 0.8384), (5148.06, 3191.88, 3308.30, 4710.23)),
    "l5-128": ((0.8530, 0.8570, 0.8457, 0.8445), (6498.47, 4026.77, 4170.24, 5944.71)),
    "l1-256": ((0.8971, 0.8960, 0.8609, 0.8682), (2503.22, 1545.66, 1604.88, 2290.60)),
    "l2-256": ((0.8686, 0.8820, 0.8616, 0.8622), (4815.55, 3145.86, 3175.61, 4647.16)),
    "l3-256": ((0.8630, 0.8753, 0.8615, 0.8522), (7424.35, 4829.54, 4995.79, 7160.82)),
    "l4-256": ((0.8633, 0.8687, 0.8615, 0.8597), (10057.21, 6532.40, 6780.03, 9661.53)),
    "l5-256": ((0.8526, 0.8563, 0.8615, 0.8400), (12710.38, 8248.65, 8547.62, 12196.92)),
    "l1-512": ((0.9013, 0.8937, 0.8754, 0.8811), (5507.09, 3400.46, 3530.74, 5039.31)),
    "l2-512": ((0.8757, 0.8849, 0.8761, 0.8671), (10132.71, 6296.81, 6351.22, 9267.38)),
    "l3-512": ((0.8640, 0.8600, 0.8762, 0.8568), (15679.24, 9676.57, 9989.58, 14333.61)),
    "l4-512": ((0.8693, 0.8686, 0.8747, 0.8641), (21171.10, 13109.52, 13573.99, 19253.18)),
    "l5-512": ((0.8516, 0.8445, 0.8752, 0.8351), (26615.25, 16516.40, 17047.50, 24402.47)),
    "l1-1024": ((0.8973, 0.8916, 0.8724, 0.8788), (12115.59, 7481.01, 7767.63, 11086.49)),
    "l2-1024": ((0.8783, 0.8857, 0.8721, 0.8767), (22239.01, 12497.18, 13040.10, 18562.63)),
    "l3-1024": ((0.8615, 0.8639, 0.8726, 0.8483), (34479.06, 19383.62, 20104.55, 28547.29)),
    "l4-1024": ((0.8610, 0.8575, 0.8724, 0.8531), (46543.86, 26153.92, 27058.01, 38650.60)),
    "l5-1024": ((0.8233, 0.8079, 0.8713, 0.7894), (53276.58, 32982.28, 34175.59, 48782.31)),
}


def _printed(tests: tuple[float, ...], seconds: tuple[float, ...]) -> dict[str, dict[str, float]]:
    return {arm: {"test": t, "backward_seconds": s} for arm, t, s in zip(ARMS, tests, seconds, strict=True)}


def best_arm(where: str) -> Callable[[Records], list[Finding]]:
    """Which of the document's four arms wins how many networks (printed: 60% top-k, 28% partial, 12% symmetric).

    A printed share is reproduced when it lies within the 95% interval (Clopper and Pearson) of ours over networks.
    """

    def findings(records: Records) -> list[Finding]:
        wins: list[str] = []
        for runs in records.values():
            accuracies = {arm: metric(runs.get(arm, []), "test_accuracy") for arm in ARMS}
            if all(accuracies.values()):
                wins.append(max(ARMS, key=lambda arm: mean(accuracies[arm])))
        if not wins:
            return []
        parts: dict[str, Verdict] = {}
        for arm, printed in SHARES.items():
            won = wins.count(arm)
            low, high = scipy.stats.binomtest(won, len(wins)).proportion_ci()
            text = f"{arm} {won} of {len(wins)}, 95% [{low:.0%}, {high:.0%}] (printed {printed:.0%})"
            parts[text] = "reproduced" if low <= printed <= high else "not"
        return [claim(where, "Best test accuracy of the four arms", parts)]

    return findings


def against(where: str) -> Callable[[Records], list[Finding]]:
    """Is each asymmetric arm better than symmetric training? Also compares with dense training without dropout."""

    def findings(records: Records) -> list[Finding]:
        ours = by_run(records, test_accuracy)
        parts = compared(ours, [(arm, "symmetric") for arm in OWN], unit=" points")
        besides = "; ".join(compared(ours, [(arm, "dense") for arm in OWN], unit=" points"))
        finding = claim(where, "Asymmetric training is more accurate than symmetric, by networks and seeds", parts)
        return [replace(finding, text=f"{finding.text} Without dropout: {besides}.")] if parts else []

    return findings


def overfitting(where: str) -> Callable[[Records], list[Finding]]:
    """The gap between train and test accuracy (claimed: asymmetric training overfits less)."""

    def gap(run: Record) -> float | None:
        train, test = run.metrics.get("final_train_accuracy"), run.metrics.get("test_accuracy")
        return None if train is None or test is None else 100 * (train - test)

    def findings(records: Records) -> list[Finding]:
        ours = by_run(records, gap)
        parts = compared(ours, [("symmetric", arm) for arm in OWN], unit=" points")
        return [claim(where, "Train minus test accuracy is smaller than that of symmetric training", parts)]

    return findings


def time(where: str, printed: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Callable[[Records], list[Finding]]:
    """The time of backward passes as a share of symmetric training's, as a mean over networks and seeds."""

    def findings(records: Records) -> list[Finding]:
        ours = by_run(records, cost("backward_ms"))
        shares_of_time = []
        for arm in OWN:
            theirs = [
                tables[arm]["backward_seconds"] / tables["symmetric"]["backward_seconds"] for tables in printed.values()
            ]
            if shares := ratios(ours, arm, "symmetric"):
                what = f"{arm}, backward time as a share of symmetric's"
                shares_of_time.append(figure(where, what, mean(theirs), shares))
        return shares_of_time

    return findings


NOTES = (
    "The document's 95% intervals run over epochs or batches, not seeds: they are not comparable with ours.",
    "Its times are those of an interpreter; ours are measured against torch's own dense backward pass.",
)

_MNIST = {"784-512-10": _printed((0.9798, 0.9819, 0.9810, 0.98002), (4818.7, 2978.8, 3212.9, 4647.8))}
_25 = {case: _printed(*numbers) for case, numbers in _FASHION.items()}

REPRODUCTIONS = [
    Reproduction(
        "asymmetric-mnist",
        "MNIST, 784-512-10, 17 epochs: symmetric, top-k, complete and partial (Srivastava 2022, tables 9.1 and 9.2).",
        "asymmetric-mnist",
        {case: [] for case in _MNIST},
        _MNIST,
        "Srivastava 2022, Table 9.1",
        ["training.epochs=1", "seeds=[0]"],
        [against("Srivastava 2022, section 9.2"), overfitting("Srivastava 2022, abstract"),
         time("Srivastava 2022, Table 9.2", _MNIST)],
        NOTES,
    ),
    Reproduction(
        "asymmetric-fashion",
        "Fashion-MNIST, 25 networks of 1 to 5 hidden layers of 64 to 1024 units, 20 epochs "
        "(Srivastava 2022, Tables 9.3 to 9.52).",
        "asymmetric-fashion",
        {case: [f"model.hidden={[int(case[3:])] * int(case[1])}"] for case in _FASHION},
        _25,
        "Srivastava 2022, Tables 9.3 to 9.51",
        ["training.epochs=1", "seeds=[0]", "data.name=digits", "data.validation=0.2"],
        [best_arm("Srivastava 2022, section 9.6"), against("Srivastava 2022, chapter 10"),
         overfitting("Srivastava 2022, abstract"), time("Srivastava 2022, Tables 9.4 to 9.52", _25)],
        NOTES,
    ),
]  # fmt: skip
