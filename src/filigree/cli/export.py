"""`filigree export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from torch import Tensor

from filigree.cli.networks import PYTHON, inputs_for, network_of
from filigree.cli.options import Drop, IndexColumn, Missing, Network, Task, Transpose, in_a_folder, reading
from filigree.cli.output import tell
from filigree.cli.trained import example_for, run_of
from filigree.export import export

_CALIBRATION, _EXAMPLE = 512, 16  # samples


def export_(
    model: Network,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="m.onnx, or m.c (with m.h).", callback=in_a_folder)
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="D",
            help="A data set's name or file: its test samples are the example. Or inputs in a .npy, .npz (x, y) or "
            ".pt; or python:MODULE:FUNCTION, which returns them. For images and series it is needed.",
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
    task: Task = None,
    transpose: Transpose = False,
    training: Annotated[
        bool, typer.Option("--training", help="C: also what trains and rewires on the device.")
    ] = False,
    runtime: Annotated[
        Literal["ort"] | None,
        typer.Option(
            "--runtime",
            help="ONNX: ort, for ONNX Runtime with filigree's operators, whose library (m.so) is written too.",
        ),
    ] = None,
    int8: Annotated[
        Literal["integers", "all"] | None,
        typer.Option(
            "--int8",
            help="ONNX: 8 bits where layers are of integers, or in all; ranges are those on --data's training part.",
        ),
    ] = None,
) -> None:
    """Write a trained model as ONNX, or as one C99 file without dependencies; its outputs are compared."""
    network = network_of(model)
    given: dict[str, Any] = {"runtime": runtime, "int8": int8, "activations": activations}
    given |= {"target": target, "flash": flash, "ram": ram}
    given = {name: value for name, value in given.items() if value is not None}
    own = None if source is None else inputs_for(network, source)
    calibration: Tensor | None = None
    if own is not None:
        example, calibration = own[: _CALIBRATION if activations == "int8" else _EXAMPLE], own[:_CALIBRATION]
    else:
        trained_by = run_of(Path(model), source) if source is not None and not model.startswith(PYTHON) else None
        options = reading(target_column, missing, index_column, drop, task, transpose)
        example = example_for(network, source, f"export {model}", trained_by, activations == "int8", **options)
        if int8 is not None and source is not None:
            calibration = example_for(network, source, f"export {model}", trained_by, True, **options)
    if int8 is not None and calibration is not None:
        given["calibration"] = calibration
    tell(str(export(network, output, example, training=training, **given)))
