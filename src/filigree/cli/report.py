"""`filigree report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from filigree.cli.output import out, records, tell
from filigree.config import visible
from filigree.extensions import extensions
from filigree.recipes import RecipeError
from filigree.report import load_comparisons, refuse_incomparable, write_report, write_site


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of runs, or of many; none: all that there are.", metavar="RUN..."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PAGE", help="The page to write (report.html), or the folder (report)."),
    ] = None,
) -> None:
    """Write one self-contained HTML page about recorded runs; without runs a folder of pages about all records.

    That is report/index.html: the comparisons of `filigree compare` in `runs`, and what installed extensions add: with
    the papers' experiments every table, figure and claim of the source documents, with verdicts.
    """
    if runs:
        shown = records(runs)
        refuse_incomparable(shown, "report")
        tell(f"wrote {write_report(shown, output or Path('report.html'))}")
        return
    if output is not None and output.is_file():
        raise RecipeError(f"report -o {output}: without runs a folder is written; this is a file.")
    folders = [Path("runs"), *(folder for extension in extensions() for folder in getattr(extension, "RECORDS", ()))]
    entries: list[Any] = []
    charts: dict[str, Any] = {}
    for extension in extensions():
        if hasattr(extension, "site"):
            added_entries, lines, added_charts = extension.site(folders)
            entries += added_entries
            charts |= added_charts
            for line in lines:
                warn(line)
    compared = load_comparisons(folders, warn)
    headlines = [claim for extension in extensions() for claim in getattr(extension, "HEADLINES", ())]
    tell(f"wrote {write_site(output or Path('report'), entries, compared, charts, headlines)}")


def warn(line: str) -> None:
    out.print(f"[dim]- {escape(visible(line))}[/dim]")
