"""The licences of all that an installation of filigree brings along: `python docs/licences.py` writes the table of
docs/supply.md."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).parent / "supply.md"


def needed(name: str = "filigree", found: dict[str, Distribution] | None = None) -> dict[str, Distribution]:
    """The distributions that this one requires without extras, and theirs, by normalised name; itself left out."""
    found = {} if found is None else found
    for text in distribution(name).requires or []:
        one = Requirement(text)
        key = re.sub(r"[-_.]+", "-", one.name).lower()
        if key in found or (one.marker is not None and not one.marker.evaluate({"extra": ""})):
            continue
        try:
            found[key] = distribution(key)
        except PackageNotFoundError:  # of CUDA, beside a CPU build of torch
            continue
        needed(key, found)
    return found


def licence(of: Distribution) -> str:
    """As it says itself: the SPDX expression, the classifier, or the name in its old field."""
    classifiers = [text.split(" :: ")[-1] for text in of.metadata.get_all("Classifier", []) if text[:7] == "License"]
    stated = of.metadata.get("License-Expression") or ", ".join(classifiers) or of.metadata.get("License", "")
    return stated.splitlines()[0] if stated else "?"


def table() -> str:
    rows = [f"| {name} | {licence(of)} |" for name, of in sorted(needed().items())]
    return "\n".join(["| package | licence |", "|---|---|", *rows])


if __name__ == "__main__":
    head, _, rest = PAGE.read_text().partition("<!-- licences -->\n")
    PAGE.write_text(f"{head}<!-- licences -->\n{table()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}")
