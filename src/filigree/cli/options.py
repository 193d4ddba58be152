"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from filigree.recipes import RecipeError


def in_a_folder(file: Path | None) -> Path | None:
    """Check the folder of an output before hours of work, not after them."""
    if file is not None and not file.absolute().parent.is_dir():
        raise RecipeError(f"{file}: there is no folder {file.parent} to write to.")
    if file is not None and file.is_dir():
        raise RecipeError(f"{file}: a folder; the name of a file is needed.")
    return file


Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key of the recipe: `--set training.epochs=5`. Repeatable."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where runs are kept; default `runs/RECIPE`.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run stopped; finished runs are kept.")
]
Model = Annotated[
    Path, typer.Argument(help="A model file that `train` or fg.save wrote (runs/.../model.safetensors), or a run.")
]
Method = Annotated[list[str] | None, typer.Option("--method", metavar="NAME", help="Only this method. Repeatable.")]
