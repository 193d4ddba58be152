"""`filigree export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from filigree.cli.options import Drop, IndexColumn, Missing, Model, in_a_folder, reading
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
    activations: Annotated[
        str | None,
        typer.Option(
            "--activations", metavar="KIND", help="C: `int8`: integers of 8 bits, with scales from the data of --data."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="PROCESSOR",
            help="C: write a project for it (cortex-m0plus, -m3, -m4, -m7, -m33), and say what it needs there.",
        ),
    ] = None,
    flash: Annotated[str | None, typer.Option("--flash", metavar="BYTES", help="Of the target: `256k`.")] = None,
    ram: Annotated[str | None, typer.Option("--ram", metavar="BYTES", help="Of the target: `64k`.")] = None,
    target_column: Annotated[
        str | None,
        typer.Option("--target-column", metavar="NAME", help="Of a table: the column of the label. Default: the last."),
    ] = None,
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
    options = reading(target_column, missing, index_column, drop)
    example = example_for(network, source, f"export {model}", trained_by, activations == "int8", **options)
    options_of_c = {"activations": activations, "target": target, "flash": flash, "ram": ram}
    given: dict[str, Any] = {name: value for name, value in options_of_c.items() if value is not None}
    tell(str(export(network, output, example, training=training, **given)))
