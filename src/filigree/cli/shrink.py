"""`filigree shrink`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from filigree import recipes
from filigree.cli.networks import PYTHON, data_for, from_python, network_of
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
    in_a_folder,
    reading,
)
from filigree.cli.output import out, tell
from filigree.io.saving import save
from filigree.optional import needed
from filigree.plot import shrunk
from filigree.shrink.plans import METHODS
from filigree.shrink.shrinking import shrink


def shrink_(
    model: Network,
    source: NetworkData,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The smaller model.", callback=in_a_folder)
    ],
    keep: Annotated[float, typer.Option(help="The share of the metric that is kept.")] = 0.99,
    metric: Annotated[
        str | None, typer.Option(help="accuracy, agreement, r2 or python:MODULE:FUNCTION. Default: what fits.")
    ] = None,
    latency_ms: Annotated[float | None, typer.Option("--latency-ms", help="Milliseconds of a batch, at most.")] = None,
    most_bytes: Annotated[int | None, typer.Option("--bytes", help="Bytes of the file, at most.")] = None,
    batch: Batch = 1,
    methods: Annotated[
        list[str] | None, typer.Option("--method", metavar="NAME", help=f"Only {', '.join(METHODS)}. Repeatable.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="GLOB", help="Only layers with these names. Repeatable.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of the data, at most.")] = 2000,
    seconds: Annotated[float, typer.Option(help="After which nothing more is tried.")] = 300.0,
    threads: Threads = None,
    picture: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="The Pareto picture, .html.", callback=in_a_folder)
    ] = None,
    target: Target = None,
    missing: Missing = None,
    index_column: IndexColumn = None,
    drop: Drop = None,
    task: Task = None,
    transpose: Transpose = False,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
) -> None:
    """Find the fastest network that keeps a share of a metric: units, connections, ranks and bits, by measurement."""
    if picture is not None:
        needed("plotly", "write_report", "report")
    if threads is not None:
        torch.set_num_threads(threads)
    network = network_of(model)
    options = reading(target, missing, index_column, drop, task, transpose)
    data = data_for(network, "shrink", model, source, seed, options)
    tell(f"searching for up to about {recipes.duration(seconds)} (--seconds)")
    result = shrink(
        network, data, _metric(metric), keep, latency_ms, most_bytes, batch=batch, where=where, samples=samples,
        methods=methods or METHODS, seconds=seconds, seed=seed,
    )  # fmt: skip
    lines = str(result).splitlines()
    for line in lines[:-1]:
        tell(line)
    save(result.model, output)
    if picture is not None:
        shrunk(result).write_html(picture)
        tell(f"wrote {picture}")
    out.print(lines[-1], markup=False, highlight=False, soft_wrap=True)
    tell(f"wrote {output}; fg.load(..., into=) and fg.optimize_ bring it back")


def _metric(name: str | None) -> Any:
    return from_python(name) if name is not None and name.startswith(PYTHON) else name
