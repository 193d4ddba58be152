"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from filigree import data
from filigree.recipes import RecipeError
from filigree.recipes.plain_yaml import as_yaml


def in_a_folder(file: Path | None) -> Path | None:
    """Check the folder of an output before hours of work, not after them."""
    if file is not None and not file.absolute().parent.is_dir():
        raise RecipeError(f"{file}: there is no folder {file.parent} to write to.")
    if file is not None and file.is_dir():
        raise RecipeError(f"{file}: a folder; the name of a file is needed.")
    if file is not None and not os.access(file.absolute().parent, os.W_OK | os.X_OK):
        raise RecipeError(f"{file}: the folder {file.parent} cannot be written to.")
    return file


def a_folder(folder: Path) -> Path:
    """Check that a folder is one, or can be made, and be written to."""
    there = next(part for part in (folder, *folder.absolute().parents) if part.exists())
    if not there.is_dir():
        raise RecipeError(f"--out {folder}: {there} is a file; a folder is needed.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RecipeError(f"--out {folder}: the folder {there} cannot be written to.")
    return folder


def a_folder_or_nothing(folder: Path | None) -> Path | None:
    return None if folder is None else a_folder(folder)


def _out(default: str) -> Any:
    return typer.Option(
        "--out", metavar="DIR", help=f"Where runs are kept; default `{default}`.", callback=a_folder_or_nothing
    )


Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the recipe: `--set training.epochs=5`. Repeatable."
    ),
]
Out = Annotated[Path | None, _out("runs/RECIPE")]
OutOfComparison = Annotated[Path | None, _out("runs/compare-DATA")]
OutOfDemo = Annotated[Path | None, _out("runs/demo")]
OutOfSweep = Annotated[Path | None, _out("runs/sweep-RECIPE-METHOD")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run stopped; finished runs are kept.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Train again, in place of the runs that are there.")]
Model = Annotated[
    Path, typer.Argument(help="A model file that `train` or fg.save wrote (runs/.../model.safetensors), or a run.")
]
Network = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model file or run, a program of torch.export (.pt2), or python:MODULE:FACTORY, a function that "
        "returns the network.",
    ),
]
NetworkData = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="D",
        help="A data set's name or file: its training part is fitted to and judged by. Or inputs in a .npy, .npz "
        "(x, y) or .pt; or python:MODULE:FUNCTION, which returns what fg.shrink takes as data.",
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Samples that are timed at once.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: its own choice.")]
Method = Annotated[list[str] | None, typer.Option("--method", metavar="NAME", help="Only this method. Repeatable.")]
Source = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="D",
        help=f"A data set's name, or a file of your own ({', '.join(data.SUFFIXES)}): docs/data.md.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target", metavar="NAME", help="Of a table: the column that holds the label. Default: the last one."
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="Of a file: the label is a class (`classification`) or a number to predict (`regression`).",
    ),
]
Transpose = Annotated[
    bool, typer.Option("--transpose", help="Of a file: samples stand in columns, as in gene expression.")
]
Missing = Annotated[
    str | None,
    typer.Option(
        "--missing",
        metavar="HOW",
        help="Of a file with missing values: `drop` those rows, or take the `mean` of the feature. Default: refuse.",
    ),
]
IndexColumn = Annotated[
    str | None,
    typer.Option(
        "--index-column", metavar="HOW", help="Of a table: `keep` a column that only numbers the rows. Default: drop."
    ),
]
Drop = Annotated[
    list[str] | None,
    typer.Option("--drop", metavar="NAME", help="Of a table: a column that is no feature. Repeatable."),
]


def reading(
    target: str | None, missing: str | None, index_column: str | None, drop: list[str] | None,
    task: str | None = None, transpose: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Those of these options that were given, as arguments of `fg.data.load`."""
    options = {
        "target": target, "missing": missing, "index_column": index_column, "drop": drop, "task": task,
        "transpose": transpose,
    }  # fmt: skip
    return {name: value for name, value in options.items() if value}


def as_settings(options: dict[str, Any]) -> list[str]:
    """Arguments of `fg.data.load` as settings of a recipe, `data.target="kind"`."""
    return [f"data.{name}={as_yaml(value)}" for name, value in options.items()]
