"""`filigree export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from filigree.cli.options import Drop, IndexColumn, Missing, Model, Target, in_a_folder, reading
from filigree.cli.output import tell
from filigree.cli.trained import example_for, load_trained, run_of
from filigree.export import export


def export_(
    model: Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="m.onnx, or m.c (with m.h).", callback=in_a_folder)
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="D",
            help="A data set's name or file: its test samples are the example. For images it is needed.",
        ),
    ] = None,
    target: Target = None,
    missing: Missing = None,
    index_column: IndexColumn = None,
    drop: Drop = None,
    training: Annotated[
        bool, typer.Option("--training", help="C: also what trains and rewires on the device.")
    ] = False,
) -> None:
    """Write a trained model as ONNX, or as one C99 file without dependencies; its outputs are compared."""
    network = load_trained(model)
    trained_by = run_of(model, source) if source is not None else None
    options = reading(target, missing, index_column, drop)
    example = example_for(network, source, f"export {model}", trained_by, **options)
    tell(str(export(network, output, example, training=training)))
