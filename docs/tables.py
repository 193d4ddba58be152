"""The tables that are made from records: `python docs/tables.py` writes them into README.md and docs/comparison.md.

A block begins with `<!-- table: NAME -->` and ends with `<!-- end -->`; a test checks that they are current.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/comparison.md")
SETS = {
    "digits": "digits", "fashion-mnist": "Fashion-MNIST", "cifar-10": "CIFAR-10", "orl": "ORL",
    "prostate-ge": "Prostate-GE", "glioma": "GLIOMA", "tox-171": "TOX-171",
}  # fmt: skip


def compared() -> dict[str, Any]:
    """The comparisons that there are, by data set."""
    files = {name: ROOT / "results" / f"compare-{name}.json" for name in SETS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}


def accuracies() -> str:
    """Test accuracy of each method on each data set; in bold what is surely above or below dense."""
    found = compared()
    methods = list(dict.fromkeys(row["method"] for made in found.values() for row in made["rows"]))
    lines = [_line("", *(SETS[name] for name in found)), "|---|" + "---|" * len(found)]
    for method in methods:
        rows = [next((r for r in made["rows"] if r["method"] == method), None) for made in found.values()]
        lines.append(_line(method, *("" if row is None else _accuracy(row) for row in rows)))
    return "\n".join(lines)


def _accuracy(row: dict[str, Any]) -> str:
    text = f"{100 * row['accuracy']:.1f}" + ("" if row["interval"] is None else f" ± {100 * row['interval']:.1f}")
    against = row["against_dense"]
    return f"**{text}**" if against and (against[1] > 0 or against[2] < 0) else text


def costs(name: str) -> str:
    """What each method costs on one data set, as ratios to dense."""
    made = compared().get(name)
    if made is None:
        return ""
    shown = {"parameters": "parameters", "bytes_disk": "bytes on disk", "train_seconds": "training time",
             "single_ms": "one sample", "batch_ms": "a batch"}  # fmt: skip
    lines = [_line("", "accuracy %", *shown.values()), "|---|" + "---|" * (len(shown) + 1)]
    for row in made["rows"]:
        ratios = [row["ratios"][key] for key in shown]
        lines.append(_line(row["method"], _accuracy(row), *("-" if r is None else f"{r:.2g}" for r in ratios)))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


TABLES: dict[str, Callable[[], str]] = {
    "accuracies": accuracies,
    **{f"costs {name}": lambda name=name: costs(name) for name in SETS},
}


def filled(text: str) -> str:
    """A page with its tables made anew."""
    block = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
    return block.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text()))
