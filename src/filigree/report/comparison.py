"""The records of `filigree compare`, which are untrusted files: checked as they are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from filigree.report.table import Row


class Comparison(pydantic.BaseModel):
    """The format that `filigree.report.summary` writes."""

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
    newest: dict[str, Comparison] = {}
    for folder in folders:
        for path in [*sorted(folder.glob("*/comparison.json")), *sorted(folder.glob("*.json"))]:
            try:
                content = json.loads(path.read_text())
                kind = str(content.get("format")) if isinstance(content, dict) else ""
                if path.name != "comparison.json" and not kind.startswith("filigree-comparison/"):
                    continue
                comparison = Comparison.model_validate(content)
            except (OSError, ValueError) as error:
                tell(f"{path}: not a comparison of the present format ({_first(error)}).")
                continue
            if comparison.name not in newest or comparison.finished > newest[comparison.name].finished:
                newest[comparison.name] = comparison
    return [newest[name].model_dump() for name in sorted(newest)]


def _first(error: Exception) -> str:
    """The first of the errors that pydantic lists, in a line."""
    if not isinstance(error, pydantic.ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
