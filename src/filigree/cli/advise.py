"""`filigree advise`."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from filigree.advise import SAMPLES, advise
from filigree.cli.networks import data_for, network_of
from filigree.cli.options import (
    Batch,
    Drop,
    IndexColumn,
    Missing,
    Network,
    NetworkData,
    Target,
    Task,
    Threads,
    Transpose,
    reading,
)
from filigree.cli.output import tell
from filigree.shrink.samples import Samples


def advise_(
    model: Network,
    source: NetworkData,
    batch: Batch = 1,
    seconds: Annotated[float, typer.Option(help="After which nothing more is begun.")] = 60.0,
    threads: Threads = None,
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
    example = Samples.of(data, None, SAMPLES, network).example(batch).chunks()[0]
    tell(f"measuring for about {seconds:.3g} seconds ...")
    tell(str(advise(network, example, data, seconds)))
