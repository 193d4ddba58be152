"""`filigree advise`."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from filigree.advise import SAMPLES, advise
from filigree.cli.networks import data_for, network_of
from filigree.cli.options import Drop, IndexColumn, Missing, Target, Task, Transpose, reading
from filigree.cli.output import tell
from filigree.shrink.samples import Samples


def advise_(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model file or run, a program of torch.export (.pt2), or python:MODULE:FACTORY, a function that "
            "returns the network.",
        ),
    ],
    source: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="D",
            help="A data set's name or file: its training part is fitted to and judged by. Or inputs in a .npy, .npz "
            "(x, y) or .pt; or python:MODULE:FUNCTION, which returns what fg.shrink takes as data.",
        ),
    ],
    batch: Annotated[int, typer.Option(min=1, help="Samples that are timed at once.")] = 1,
    seconds: Annotated[float, typer.Option(help="After which nothing more is begun.")] = 60.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: its own choice.")] = None,
    target: Target = None,
    missing: Missing = None,
    index_column: IndexColumn = None,
    drop: Drop = None,
    task: Task = None,
    transpose: Transpose = False,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
) -> None:
    """Measure in a minute which methods would pay on a network and on this machine: a table, and what to call."""
    if threads is not None:
        torch.set_num_threads(threads)
    network = network_of(model)
    options = reading(target, missing, index_column, drop, task, transpose)
    data = data_for(network, "advise", model, source, seed, options)
    example = Samples.of(data, None, SAMPLES).example(batch).chunks()[0]
    tell(f"measuring for about {seconds:.3g} seconds ...")
    tell(str(advise(network, example, data, seconds)))
