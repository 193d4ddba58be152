"""The licences of all that an installation of filigree brings along: `python docs/licences.py` writes the table of
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
    """The distributions that these requirements bring along, by normalised name."""
    found: dict[str, Distribution] = {}
    seen: set[str] = set()
    queue = list(requirements)
    while queue:
        one = Requirement(queue.pop())
        key = re.sub(r"[-_.]+", "-", one.name).lower()
        for extra in ("", *one.extras):
            if f"{key}[{extra}]" in seen:
                continue
            seen.add(f"{key}[{extra}]")
            if key == "filigree":  # an extra that is made of others; what filigree needs itself is `declared()`
                queue += declared(extra) if extra else []
                continue
            try:
                found[key] = distribution(key)
            except PackageNotFoundError:  # of CUDA, beside a CPU build of torch
                continue
            queue += [text for text in found[key].requires or [] if _holds(Requirement(text), extra)]
    return found


def _holds(requirement: Requirement, extra: str) -> bool:
    """Whether a distribution requires this on this platform, with the extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def licence(of: Distribution) -> str:
    """As it says itself: the SPDX expression, the classifier, or the name in its old field."""
    classifiers = [text.split(" :: ")[-1] for text in of.metadata.get_all("Classifier", []) if text[:7] == "License"]
    stated = of.metadata.get("License-Expression") or ", ".join(classifiers) or of.metadata.get("License", "")
    return stated.splitlines()[0] if stated else "?"


def table() -> str:
    base, rows = needed(declared()), []
    groups = {extra: needed(declared(extra)) for extra in sorted(Requirement(declared("all")[0]).extras)}
    for name, of in sorted(needed([*declared(), *declared("all")]).items()):
        extras = [extra for extra, group in groups.items() if name in group]
        rows.append(f"| {name} | {licence(of)} | {'filigree' if name in base else ', '.join(extras)} |")
    return "\n".join(["| package | licence | brought by |", "|---|---|---|", *rows])


if __name__ == "__main__":
    head, _, rest = PAGE.read_text().partition("<!-- licences -->\n")
    PAGE.write_text(f"{head}<!-- licences -->\n{table()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}")
