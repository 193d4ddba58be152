"""The licences of all packages that filigree and its extras require: `python docs/licences.py` writes the table of
docs/supply.md."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).parent / "supply.md"
PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def declared(extra: str = "") -> list[str]:
    """The requirements of filigree itself, or of one of its extras, as pyproject.toml has them."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    return project["optional-dependencies"][extra] if extra else project["dependencies"]


def needed(requirements: list[str]) -> dict[str, Distribution]:
    """The distributions that these requirements install, by normalised name."""
    packages: dict[str, Distribution] = {}
    seen: set[str] = set()
    queue = list(requirements)
    while queue:
        requirement = Requirement(queue.pop())
        key = re.sub(r"[-_.]+", "-", requirement.name).lower()
        for extra in ("", *requirement.extras):
            if f"{key}[{extra}]" in seen:
                continue
            seen.add(f"{key}[{extra}]")
            if key == "filigree-nn":  # an extra that is made of others; what filigree needs itself is `declared()`
                queue += declared(extra) if extra else []
                continue
            try:
                packages[key] = distribution(key)
            except PackageNotFoundError:  # CUDA's packages, beside a CPU build of torch
                continue
            queue += [text for text in packages[key].requires or [] if _holds(Requirement(text), extra)]
    return packages


def _holds(requirement: Requirement, extra: str) -> bool:
    """Whether a distribution requires this on this platform, with the extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def licence(package: Distribution) -> str:
    """As the package states it: the SPDX expression, the classifier, or the name in the old field."""
    classifiers = [
        text.split(" :: ")[-1] for text in package.metadata.get_all("Classifier", []) if text[:7] == "License"
    ]
    old = package.metadata.get("License", "")
    stated = package.metadata.get("License-Expression") or ", ".join(classifiers) or old
    return stated.splitlines()[0] if stated else "?"


def table() -> str:
    base, rows = needed(declared()), []
    groups = {extra: needed(declared(extra)) for extra in sorted(Requirement(declared("all")[0]).extras)}
    for name, package in sorted(needed([*declared(), *declared("all")]).items()):
        extras = [extra for extra, group in groups.items() if name in group]
        rows.append(f"| {name} | {licence(package)} | {'filigree' if name in base else ', '.join(extras)} |")
    return "\n".join(["| package | licence | brought by |", "|---|---|---|", *rows])


if __name__ == "__main__":
    head, _, rest = PAGE.read_text().partition("<!-- licences -->\n")
    PAGE.write_text(f"{head}<!-- licences -->\n{table()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}")
