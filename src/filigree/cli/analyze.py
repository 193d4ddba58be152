"""`filigree analyze`."""

from __future__ import annotations

from typing import Annotated

import typer

from filigree.analyze import analyze
from filigree.cli.options import Model
from filigree.cli.trained import load_trained


def analyze_(
    model: Model,
    nulls: Annotated[int, typer.Option(min=2, help="Erdos-Renyi graphs drawn for comparison.")] = 10,
) -> None:
    """Is a trained topology still random? Degrees, clustering, paths against the Erdos-Renyi null."""
    print(analyze(load_trained(model), nulls=nulls))
