"""The licences of all packages that filigree requires: `python docs/licences.py` writes the table of docs/supply.md."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).parent / "supply.md"


def required(name: str = "filigree", known: dict[str, Distribution] | None = None) -> dict[str, Distribution]:
    """What the distribution `name` requires without extras, and what that requires, by normalised name."""
    known = {} if known is None else known
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        key = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if key in known or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            known[key] = distribution(key)
        except PackageNotFoundError:  # CUDA's packages, beside a CPU build of torch
            continue
        required(key, known)
    return known


def licence(package: Distribution) -> str:
    """As the package states it: the SPDX expression, the classifier, or the name in the old field."""
    classifiers = [
        text.split(" :: ")[-1] for text in package.metadata.get_all("Classifier", []) if text.startswith("License")
    ]
    stated = package.metadata.get("License-Expression") or ", ".join(classifiers) or package.metadata.get("License", "")
    return stated.splitlines()[0] if stated else "?"


def table() -> str:
    rows = [f"| {name} | {licence(package)} |" for name, package in sorted(required().items())]
    return "\n".join(["| package | licence |", "|---|---|", *rows])


if __name__ == "__main__":
    head, _, rest = PAGE.read_text().partition("<!-- licences -->\n")
    PAGE.write_text(f"{head}<!-- licences -->\n{table()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}")
