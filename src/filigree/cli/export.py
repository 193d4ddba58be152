"""`filigree export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from filigree.cli.options import Model, in_a_folder
from filigree.cli.output import tell
from filigree.cli.trained import example_for, load_trained
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
    training: Annotated[
        bool, typer.Option("--training", help="C: also what trains and rewires on the device.")
    ] = False,
) -> None:
    """Write a trained model as ONNX, or as one C99 file without dependencies; its outputs are compared."""
    network = load_trained(model)
    example = example_for(network, source, f"export {model}")
    tell(str(export(network, output, example, training=training)))
