"""The records of `filigree compare`, which are untrusted files: checked as they are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from filigree.report.table import Row


class Comparison(pydantic.BaseModel):
    """What `filigree.report.summary` makes."""

    format: Literal["filigree-comparison/1"]
    name: str
    about: str
    finished: str
    machine: dict[str, Any]
    commit: str | None
    versions: dict[str, str]
    notes: list[str] = []
    rows: Annotated[list[Row], pydantic.Field(min_length=1)]


def load_comparisons(folders: Sequence[Path], tell: Callable[[str], object] = print) -> list[dict[str, Any]]:
    """The comparisons in `FOLDER/*/comparison.json` and `FOLDER/*.json`, by name; of two the newer.

    The latter may be of other kinds, as summaries are. `tell` gets a line on each comparison that cannot be read.
    """
    found: dict[str, Comparison] = {}
    for folder in folders:
        for path in [*sorted(folder.glob("*/comparison.json")), *sorted(folder.glob("*.json"))]:
            try:
                made = json.loads(path.read_text())
                kind = str(made.get("format")) if isinstance(made, dict) else ""
                if path.name != "comparison.json" and not kind.startswith("filigree-comparison/"):
                    continue
                its = Comparison.model_validate(made)
            except (OSError, ValueError) as error:
                tell(f"{path}: not a comparison of the present format ({_first(error)}).")
                continue
            if its.name not in found or its.finished > found[its.name].finished:
                found[its.name] = its
    return [found[name].model_dump() for name in sorted(found)]


def _first(error: Exception) -> str:
    """A line: of all that pydantic finds wrong, the first."""
    if not isinstance(error, pydantic.ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
