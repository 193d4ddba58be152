"""docs/composition.md: which methods may follow one another, as rules and a table by kind of method.

`tests/composition.py` applies every pair of methods and calls `page` with what happened. A rule states the outcome of
the pairs that it covers; where two rules cover a pair, the later one holds. A pair that no rule explains is listed on
the page as an exception, so that rules and exceptions together are exactly what was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

Pair = tuple[str, str]  # the method that comes first, the one that follows
WORKS = ""

SPARSE = {"Sparse", "Paths"}
ASYMMETRIC = {"top-k", "partial", "complete"}
TRANSFORMS = {"ACDC", "AFDF", "Fastfood", "Circulant", "Toeplitz"}
DROPOUT = {"PartitionDropout", "Dropout", "GaussianDropout", "GuidedDropout"}
NOISE = {"Noisy", "NoisyRectifier"}
PRUNING = {"SubsetPruning", "ClusterPruning", "SubClustering", "MagnitudePruning", "RandomPruning"}
INTEGERS = {"RoundToNearest", "MonteCarlo"}
DRAWN = {"PathSampling", "OneShot"}  # connections of a trained network
KINDS = {  # as the table names them
    "sparse layers (`Sparse`, `Paths`)": SPARSE,
    "sparse with a mask (`masked=True`)": {"Sparse, masked"},
    "`OnlinePaths`": {"OnlinePaths"},
    "sparsified backpropagation (`Asymmetric`)": ASYMMETRIC,
    "fast transforms (`ACDC`, `AFDF`, `Fastfood`, `Circulant`, `Toeplitz`)": TRANSFORMS,
    "`PHD`": {"PHD"},
    "`LowRank`": {"LowRank"},
    "dropout (all four kinds)": DROPOUT,
    "noise (`Noisy`, `NoisyRectifier`)": NOISE,
    "`Mollified`": {"Mollified"},
    "pruning of units (all five kinds)": PRUNING,
    "small integers (`MonteCarlo`, `RoundToNearest`)": INTEGERS,
    "connections of a trained network (`OneShot`, `PathSampling`)": DRAWN,
    "`FitStructured`": {"FitStructured"},
}
FORMS = {*SPARSE, "Sparse, masked", "OnlinePaths", *ASYMMETRIC, *TRANSFORMS, "PHD", "LowRank"}  # of a linear layer
REWRITTEN = FORMS - {"LowRank"} | INTEGERS | DRAWN | {"FitStructured"}  # no plain linear layer is left


class Rule(NamedTuple):
    text: str
    first: set[str]
    second: set[str]
    outcome: str  # WORKS, or a key of the reasons for a refusal


RULES = [
    Rule(
        "**One form for a linear layer.** Sparse, masked, sparsified in its gradient, structured: each of these takes "
        "a plain linear layer and leaves none.",
        FORMS, FORMS, "nothing left",
    ),
    Rule(
        "Sparsified backpropagation may follow sparse layers, and `PHD`, which holds one.",
        SPARSE | {"PHD"}, ASYMMETRIC, WORKS,
    ),
    Rule(
        "`LowRank` leaves two plain layers, so every form may follow it.",
        {"LowRank"}, FORMS, WORKS,
    ),
    Rule("**One dropout** for a network.", DROPOUT, DROPOUT, "nothing left"),
    Rule(
        "**An activation that is gone cannot be made noisy.** Sparse, masked and asymmetric layers take up the ReLU "
        "behind them, and `Mollified` takes up every activation.",
        SPARSE | ASYMMETRIC | {"Sparse, masked", "Mollified"}, {"NoisyRectifier"}, "nothing left",
    ),
    Rule("", {"Mollified"}, {"Noisy"}, "nothing left"),
    Rule(
        "**Pruning of units** works on plain, sparse, asymmetric and low-rank layers, and after itself. Fast "
        "transforms, masked layers, and the layers of `MonteCarlo`, `RoundToNearest` and `FitStructured` have no units "
        "to remove.",
        TRANSFORMS | INTEGERS | {"Sparse, masked", "FitStructured"}, PRUNING, "nothing left",
    ),
    Rule(
        "What keeps a number for each unit (`PHD`, `Noisy`, `Mollified`, `GuidedDropout`) is refused by name.",
        {"PHD", "Noisy", "Mollified", "GuidedDropout"}, PRUNING, "prune before",
    ),
    Rule(
        "**Small integers** are made of plain and sparse layers (and of the sparse factor of `PHD`), pruned or not.",
        REWRITTEN - SPARSE - {"PHD"} - DRAWN, INTEGERS, "nothing left",
    ),
    Rule(
        "**`OneShot`, `PathSampling` and `FitStructured`** read plain linear layers only.",
        REWRITTEN, DRAWN | {"FitStructured"}, "nothing left",
    ),
    Rule("**Everything else works**, in either order.", set(), set(), WORKS),
]  # fmt: skip


def predicted(pair: Pair) -> str:
    """What the rules say of a pair: WORKS, or a reason."""
    outcomes = [rule.outcome for rule in RULES if pair[0] in rule.first and pair[1] in rule.second]
    return outcomes[-1] if outcomes else WORKS


def exceptions(outcomes: Mapping[Pair, str]) -> list[Pair]:
    """The measured pairs of which the rules say something else."""
    return [pair for pair, outcome in outcomes.items() if predicted(pair) != outcome]


def page(outcomes: Mapping[Pair, str], reasons: Mapping[str, str], methods: Mapping[str, str] | None = None) -> str:
    """The text of docs/composition.md.

    Args:
        outcomes: of each pair that was tried: WORKS, or a key of `reasons`.
        reasons: what each key means, in words.
        methods: a sentence about each method, for a list at the end of the page.
    """
    works = sum(outcome == WORKS for outcome in outcomes.values())
    numbered = (rule.text for rule in RULES if rule.text)
    meanings = "; ".join(f"*{key}*: {text}" for key, text in reasons.items())
    lines = [
        "# What composes",
        "",
        "Of each pair of methods the first was applied to a small network and two steps were trained, then the second "
        "was applied and two more steps were trained; the network was saved, loaded, measured, and one pair in forty "
        "was exported to ONNX, with outputs compared. No method converts a network after it was compressed. "
        f"**{works} of {len(outcomes)} pairs work.** The others are refused with one line that says why, and the "
        "network is left as it was.",
        "",
        "`tests/test_composition.py` tries all pairs again (with `FILIGREE_EVERY_EXPORT=1` it exports each, which "
        "takes 20 minutes on a core), and `python tests/composition.py` writes this page.",
        "",
        "## The rules",
        *(f"{number}. {text}" for number, text in enumerate(numbered, 1)),
        "",
        "A layer that `where=` did not choose is as it was, so two methods may also share a network by layers.",
        "",
        "## By kind of method",
        f"A refusal has one of {len(reasons)} reasons. {meanings}.",
        "",
        "| this method | works after | is refused after |",
        "|---|---|---|",
        *_rows(outcomes),
        "",
        "## Exceptions",
        *(_exceptions(outcomes) or ["Every pair that was tried follows from the rules."]),
    ]  # fmt: skip
    if methods:
        lines += ["", "## The methods", "| method | |", "|---|---|"]
        lines += [f"| {name} | {text} |" for name, text in methods.items()]
    return "\n".join(lines) + "\n"


def _rows(outcomes: Mapping[Pair, str]) -> Iterable[str]:
    """A row for each kind that comes second: after which kinds it works, and after which it is refused."""
    named = set().union(*KINDS.values())
    others = {name: {name} for name in dict.fromkeys(b for _, b in outcomes) if name not in named}  # of your own
    kinds = KINDS | others
    for name, second in kinds.items():
        works: list[str] = []
        refused: dict[str, list[str]] = {}
        for kind, first in kinds.items():
            tried = {(a, b): outcomes[a, b] for a in sorted(first) for b in sorted(second) if (a, b) in outcomes}
            for outcome in dict.fromkeys(tried.values()):
                pairs = [pair for pair in tried if tried[pair] == outcome]
                text = _short(kind) if len(pairs) == len(tried) else _named(pairs, kind, first, second)
                (works if outcome == WORKS else refused.setdefault(outcome, [])).append(text)
        reasons = "; ".join(f"*{reason}*: {', '.join(texts)}" for reason, texts in refused.items())
        yield f"| {name} | {', '.join(works)} | {reasons} |"


def _short(kind: str) -> str:
    return kind.partition(" (")[0]


def _named(pairs: list[Pair], kind: str, first: set[str], second: set[str]) -> str:
    """Some pairs of two kinds, as briefly as they can be told."""
    firsts, seconds = {a for a, _ in pairs}, {b for _, b in pairs}
    if len(firsts) * len(seconds) != len(pairs):
        return ", ".join(f"`{b}` after `{a}`" for a, b in pairs)
    after = _short(kind) if firsts == first else ", ".join(f"`{a}`" for a in sorted(firsts))
    return after if seconds == second else f"{after} (only {', '.join(f'`{b}`' for b in sorted(seconds))})"


def _exceptions(outcomes: Mapping[Pair, str]) -> list[str]:
    return [f"- `{b}` after `{a}`: {outcomes[a, b] or 'works'}." for a, b in exceptions(outcomes)]
