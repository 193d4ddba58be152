"""`fg.plot`: models, runs and feature rankings as plotly figures, for notebooks and files (`figure.write_html`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from filigree.analyze import patterns
from filigree.config import listed
from filigree.report import figures
from filigree.report.table import refuse_incomparable, summary_table
from filigree.shrink.shrunk import Shrunk
from filigree.topology import science
from filigree.train import History, Record, find_records
from filigree.train.history import SCORES

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CELLS = 200  # of a picture's longer side
_COLUMNS = tuple(f"{part}_{score}" for part in ("val", "test", "train") for score in SCORES)


def training(runs: Any, key: str | None = None, *, against: str = "epoch") -> go.Figure:
    """A column of training histories, run by run: a line for each method, and a band over its seeds.

    Args:
        runs: a `History`, a `Record`, folders of runs, a list of these, or a dict of histories by name.
        key: a column of `History`, such as "train_loss" or "zeta"; by default the validation accuracy (R2 of a
            quantity), where there is one, else that on test or training data, else the loss.
        against: "epoch", or "elapsed" for the training time in seconds.

    Raises:
        ValueError: no run, or none with such a column; another `against`.
    """
    if against not in ("epoch", "elapsed"):
        raise ValueError(f'plot.training: against must be "epoch" or "elapsed". Got {against!r}.')
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for name, history in _histories(runs):
        methods.setdefault(name, []).append({"history": history})
    columns = {column for several in methods.values() for run in several for row in run["history"] for column in row}
    chosen = key if key is not None else next((name for name in _COLUMNS if name in columns), "train_loss")
    if chosen not in columns:
        known = listed(sorted(columns), 12)
        raise ValueError(f"plot.training: key must be a column of the histories: {known}. Got {chosen!r}.")
    scale, unit = (100.0, ", %") if chosen.endswith("accuracy") else (1.0, "")
    figure = figures.curves(methods, chosen, against, chosen.replace("_", " ") + unit, scale)
    return figure.update_yaxes(title=chosen.replace("_", " ") + unit)


def pareto(runs: Any, cost: str = "train_seconds") -> go.Figure:
    """Test error of the methods of a recipe's runs against a cost, and the Pareto front.

    Args:
        runs: `Record`s, or folders of runs. cost: "train_seconds", "bytes_disk" or "single_ms".
    """
    if cost not in figures.TRADES:
        raise ValueError(f"plot.pareto: cost must be one of {', '.join(figures.TRADES)}. Got {cost!r}.")
    records = [record.model_dump() for record in _records(runs, "plot.pareto")]
    refuse_incomparable(records, "plot.pareto")
    return figures.trade(summary_table(records), cost, figures.TRADES[cost])


def shrunk(result: Shrunk) -> go.Figure:
    """What `fg.shrink` tried: the metric of each network against its milliseconds, the Pareto front, and what was to be
    kept."""
    figure, front = figures.empty_figure(), result.pareto()
    methods = list(dict.fromkeys(attempt.method for attempt in result.attempts))
    colours = figures.palette([method for method in methods if method != "original"])
    for method in methods:
        some = [attempt for attempt in result.attempts if attempt.method == method]
        figure.add_scatter(
            x=[attempt.ms for attempt in some], y=[attempt.metric for attempt in some], name=method, mode="markers",
            text=[f"{attempt.setting}, {attempt.bytes:,} bytes" for attempt in some],
            marker={"size": 9, "color": colours.get(method, figures.DENSE)},
        )  # fmt: skip
    figure.add_scatter(
        x=[attempt.ms for attempt in front], y=[attempt.metric for attempt in front], name="Pareto front",
        mode="lines", line={"shape": "hv", "color": figures.DENSE, "width": 1},
    )  # fmt: skip
    winner = result.winner
    figure.add_scatter(
        x=[winner.ms], y=[winner.metric], name="winner", mode="markers",
        marker={"size": 16, "symbol": "circle-open", "color": "#000", "line": {"width": 2}},
    )  # fmt: skip
    figure.add_hline(y=result.least, line={"color": figures.DENSE, "dash": "dot", "width": 1})
    figure.update_xaxes(title=f"ms, batch {result.batch}", type="log")
    figure.update_yaxes(title=result.metric)
    return figures.finish(figure, f"{result.metric} against time", height=460).update_layout(hovermode="closest")


def pattern(model: nn.Module, layer: str | None = None) -> go.Figure:
    """The connections of a sparse layer as a picture: inputs from left to right, outputs from top to bottom.

    A cell of a large layer stands for several inputs and outputs; its colour is the share of them that are connected.

    Args:
        layer: its name; by default the first sparse one.
    """
    name, chosen = _layer(model, layer, "plot.pattern")
    shares = science.coarse(chosen, (_CELLS, _CELLS))
    figure = figures.empty_figure()
    figure.add_heatmap(z=shares, colorscale="Greys", zmin=0, zmax=float(shares.max() or 1), colorbar={"thickness": 10})
    figure.update_yaxes(autorange="reversed", title="outputs", showticklabels=False)
    figure.update_xaxes(title="inputs", showticklabels=False)
    sizes_text = f"{chosen.shape[1]:,} x {chosen.shape[0]:,}, {chosen.nnz:,} connections"
    return figures.finish(figure, f"{name}: {sizes_text}", 420).update_layout(hovermode="closest")


def degrees(model: nn.Module, side: str = "fan_out") -> go.Figure:
    """How many units of each sparse layer have how many connections.

    Args:
        side: "fan_out", outputs that read an input, or "fan_in", inputs that an output reads.
    """
    if side not in ("fan_in", "fan_out"):
        raise ValueError(f'plot.degrees: side must be "fan_in" or "fan_out". Got {side!r}.')
    _layer(model, None, "plot.degrees")
    figure = figures.empty_figure()
    for number, (name, chosen) in enumerate(patterns(model).items()):
        counts = np.bincount(science.degrees(chosen)[side == "fan_out"])
        known = np.flatnonzero(counts)
        colour = figures.COLOURS[number % len(figures.COLOURS)]
        figure.add_scatter(x=known, y=counts[known], mode="lines+markers", name=name, line={"color": colour})
    figure.update_xaxes(title="outputs that read an input" if side == "fan_out" else "inputs that an output reads")
    figure.update_yaxes(title="how many")
    return figures.finish(figure, "connections a unit")


def ranking(model: nn.Module, shape: Sequence[int] | None = None) -> go.Figure:
    """How strongly the first sparse layer reads each input: the sum of |w| of its connections (Atashgahi et al. 2022).

    Args:
        shape: of a sample, `(height, width)` or `(channels, height, width)`, for a picture; else a bar an input.
    """
    _, first = _layer(model, None, "plot.ranking")
    strength = science.input_strength(first)
    figure = figures.empty_figure()
    if shape is None:
        figure.add_bar(y=strength, marker_color=figures.COLOURS[0])
        figure.update_xaxes(title="input")
        figure.update_yaxes(title="sum of |w|")
        return figures.finish(figure, "strength of the inputs")
    if len(shape) not in (2, 3) or int(np.prod(shape)) != len(strength):
        raise ValueError(f"plot.ranking: shape must be of {len(strength)} inputs. Got {tuple(shape)}.")
    image = strength.reshape(-1, *shape[-2:]).sum(0)
    figure.add_heatmap(z=image, colorscale="Viridis", colorbar={"thickness": 10})
    figure.update_yaxes(autorange="reversed", visible=False, scaleanchor="x")
    figure.update_xaxes(visible=False)
    return figures.finish(figure, "strength of the inputs", 420).update_layout(hovermode="closest")


def _layer(model: nn.Module, name: str | None, who: str) -> tuple[str, science.SparseMatrix]:
    known = patterns(model)
    if not known:
        raise ValueError(f"{who}: the model has no sparse layers. Call fg.convert_(model, fg.Sparse(...)) first.")
    if name is not None and name not in known:
        raise ValueError(f"{who}: layer must be one of {listed(list(known), 12)}. Got {name!r}.")
    return (name, known[name]) if name is not None else next(iter(known.items()))


def _histories(runs: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    """Name and rows of each history."""
    if isinstance(runs, History):
        return [("training", runs.rows)]
    if isinstance(runs, Mapping):
        return [(str(name), list(history)) for name, history in runs.items()]
    if isinstance(runs, list | tuple) and runs and all(isinstance(run, History) for run in runs):
        return [("training", run.rows) for run in runs]
    return [(record.method or "training", record.history) for record in _records(runs, "plot.training")]


def _records(runs: Any, who: str) -> list[Record]:
    several = runs if isinstance(runs, list | tuple) else [runs]
    records: list[Record] = []
    for run in several:
        if isinstance(run, str | Path):
            records += [Record.load(file) for file in find_records(Path(run))]
        elif isinstance(run, Record):
            records.append(run)
        else:
            raise TypeError(f"{who}: runs must be records, folders of runs or histories. Got {type(run).__name__}.")
    if not records:
        raise ValueError(f"{who}: at least one run is expected. Got none.")
    return records
