"""`filigree compress`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
import typer

from filigree import recipes
from filigree.cli.options import Drop, IndexColumn, Missing, Model, Target, Task, Transpose, in_a_folder, reading
from filigree.cli.output import out, tell
from filigree.cli.trained import load_samples, load_trained, run_of
from filigree.compress import compress_
from filigree.io.saving import save
from filigree.measure.cost import stored
from filigree.ops.sparse_rows import as_dense, rows_of
from filigree.recipes import compressions
from filigree.train import evaluate


def compress(
    model: Model,
    how: Annotated[str, typer.Argument(help=f"One of {', '.join(compressions())}.", metavar="METHOD")],
    source: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="D",
            help="A data set's name, or a file (.csv, .npz, ...): its training part calibrates, its test part judges.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The compressed model.", callback=in_a_folder)
    ],
    target: Target = None,
    missing: Missing = None,
    index_column: IndexColumn = None,
    drop: Drop = None,
    task: Task = None,
    transpose: Transpose = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An argument of the method: `--set samples=0.12`. Repeatable."),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="GLOB", help="Only modules with these names. Repeatable.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Training samples that calibrate; 0: none.")] = 2000,
    seed: Annotated[int | None, typer.Option(help="Of split and samples. Default: the run's own, or 0.")] = None,
) -> None:
    """Compress a trained model: pruning, sampling, paths, low rank; no retraining; before and after: accuracy or R2."""
    network = load_trained(model)
    config = recipes.compression(how, settings or [])
    trained_by = run_of(model, source) if seed is None else None
    options = reading(target, missing, index_column, drop, task, transpose)
    split = load_samples(network, source, f"compress {model}", seed or 0, trained_by, **options)
    chosen = torch.randperm(len(split.train.x), generator=torch.Generator().manual_seed(seed or 0))[:samples]
    sizes, scores = [], []
    quantity = split.task == "regression"
    for step in range(2):
        scores.append(evaluate(network, split.test).get("r2" if quantity else "accuracy", math.nan))
        sizes.append(stored(network).bytes_disk)
        if step == 0:
            report = compress_(network, config, as_dense(rows_of(split.train.x, chosen)) if samples else None, where)
            tell(str(report))
    save(network, output)
    before, after = (f"{score:.3f}" if quantity else f"{100 * score:.2f}%" for score in scores)
    name = "R2" if quantity else "accuracy"
    out.print(f"test {name} {before} -> {after}, bytes {sizes[0]:,} -> {sizes[1]:,}")
    tell(f"wrote {output}")
