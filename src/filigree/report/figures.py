"""Records as figures: pure functions from records to plotly figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from filigree.optional import needed
from filigree.report.chart import Chart
from filigree.report.label_placement import place_labels
from filigree.report.table import RecordLike, Row, figure_of, summary_table
from filigree.train.history import score_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito's colours, which the colour-blind can tell apart; dense is grey
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#6A3D9A"]
DENSE = "#555555"
_EPOCHS = ["solid", "dash", "dot"]
# costs that a method is judged against
TRADES = {"train_seconds": "training time, s", "bytes_disk": "bytes on disk", "single_ms": "ms a sample"}


def empty_figure() -> go.Figure:
    return needed("plotly.graph_objects", "write_report", "report").Figure()


def palette(methods: Sequence[str]) -> dict[str, str]:
    """A colour for each method, dense in grey."""
    others = [method for method in methods if method != "dense"]
    return {"dense": DENSE} | {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(others)}


def curves(methods: Mapping[str, Sequence[RecordLike]], key: str, x: str, title: str, scale: float = 1.0) -> go.Figure:
    """The mean of a column of the histories over the runs, with a band from the least to the largest."""
    figure, colours = empty_figure(), palette(list(methods))
    for method, runs in methods.items():
        histories = [run["history"] for run in runs if run["history"]]
        length = min((len(rows) for rows in histories), default=0)
        at, values = [], []
        for i in range(length):
            column = [rows[i].get(key) for rows in histories]
            if all(value is not None for value in column):
                at.append(i + 1 if x == "epoch" else statistics.fmean(rows[i][x] for rows in histories))
                values.append([scale * float(value) for value in column])
        if not at:
            continue
        colour, name = colours[method], str(method)
        if len(histories) > 1 and len(at) > 1:
            band = [max(v) for v in values] + [min(v) for v in reversed(values)]
            figure.add_scatter(
                x=at + at[::-1], y=band, fill="toself", fillcolor=_faint(colour), line={"width": 0}, hoverinfo="skip",
                legendgroup=name, showlegend=False, mode="lines",
            )  # fmt: skip
        figure.add_scatter(
            x=at, y=[statistics.fmean(v) for v in values], name=_escape(name), legendgroup=name,
            mode=_joined(at), line={"color": colour, "width": 2}, marker={"size": 8},
            error_y=None if len(at) > 1 else _reach(values[0]),
        )  # fmt: skip
    figure.update_xaxes(title="epoch" if x == "epoch" else "training time, s")
    return finish(figure, title)


def lines(rows: Sequence[Mapping[str, Any]], chart: Chart) -> go.Figure:
    """A column of computed rows against another, `[mean, deviation]` with its error bars."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get(chart.x) is not None and row.get(chart.y) is not None:
            groups.setdefault(", ".join(str(row.get(key)) for key in chart.by), []).append(row)
    figure, colours = empty_figure(), palette(list(groups))
    for number, (name, group) in enumerate(groups.items()):
        dash = _EPOCHS[number // len(COLOURS) % len(_EPOCHS)]  # where colours come again
        x, y = ([_point(row[key]) for row in group] for key in (chart.x, chart.y))
        figure.add_scatter(
            x=[mean for mean, _ in x], y=[mean for mean, _ in y], error_y={"array": [spread for _, spread in y]},
            name=_escape(name), mode="lines+markers",
            line={"color": colours[name], "width": 2, "dash": dash},
        )  # fmt: skip
    if chart.printed:
        at, value = zip(*chart.printed, strict=True)
        figure.add_scatter(x=at, y=value, name="printed", mode="markers", marker={"color": "#000", "symbol": "x"})
    figure.update_xaxes(title=chart.x)
    if chart.log:
        figure.update_xaxes(type="log")
        figure.update_yaxes(type="log")
    figure.update_yaxes(title=chart.y)
    finish(figure, chart.title or f"{chart.y} against {chart.x}")
    if len(groups) > 8:  # below the axes they would leave no room for them
        figure.update_layout(
            height=100 + 20 * len(groups), legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"}
        )
    return figure


def _point(value: Any) -> tuple[float, float | None]:
    """A number and its deviation: of `[mean, deviation]`, of a number, or of one in a string."""
    return (value[0], value[1]) if isinstance(value, list) else (float(value), None)


def bars(
    records: Sequence[RecordLike], keys: Mapping[str, str], title: str, ratio: bool, log: bool = False
) -> go.Figure:
    """One group of bars for each cost that is known, a bar a method; as ratios to dense with a line at 1. On a
    logarithmic axis, where bars have no foot, points."""
    rows = summary_table(records)
    colours, figure = palette([row.method for row in rows]), empty_figure()
    sources = {row.method: row.ratios if ratio else row.costs for row in rows}
    known = [key for key in keys if any(source.get(key) is not None for source in sources.values())]
    for method, source in sources.items() if known else ():
        points = {"mode": "markers", "marker": {"size": 12, "color": colours[method]}}
        (figure.add_scatter if log else figure.add_bar)(
            x=[keys[key] for key in known], y=[source.get(key) for key in known], name=_escape(method),
            **(points if log else {"marker_color": colours[method]}),
        )  # fmt: skip
    if ratio:
        figure.add_hline(y=1, line={"color": DENSE, "dash": "dot", "width": 1})
    figure.update_layout(barmode="group")
    if log:
        figure.update_yaxes(type="log")
    return finish(figure, title)


def pareto(runs: Sequence[RecordLike]) -> go.Figure:
    """Trials of a sweep: validation accuracy against the cost that was minimised, and the front."""
    key, unit = "", "validation accuracy, %"
    points: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if search := run.get("config", {}).get("sweep"):
            key = search["minimize"]
            cost = figure_of(run, key)
            score = score_of(run["metrics"], "val")
            if cost is not None and score is not None:
                unit = "validation accuracy, %" if score[0] == "accuracy" else "validation R2, %"
                points.setdefault(str(run["method"]), []).append((cost, 100 * score[1]))
    means = {}  # of times the median: one that was disturbed does not move it
    for name, pairs in points.items():
        costs, accuracies = zip(*pairs, strict=True)
        means[name] = statistics.median(costs), statistics.fmean(accuracies)
    figure = empty_figure()
    if means:
        figure.add_scatter(
            x=[at[0] for at in means.values()], y=[at[1] for at in means.values()], mode="markers", name="trials",
            text=[_escape(name) for name in means], marker={"color": COLOURS[0], "size": 8, "opacity": 0.7},
        )  # fmt: skip
        _front(figure, list(means.values()))
    figure.update_xaxes(title=_escape(key))
    figure.update_yaxes(title=unit)
    return finish(figure, f"Accuracy against {_escape(key)}").update_layout(hovermode="closest")


def trade(rows: Sequence[Row], key: str, heading: str) -> go.Figure:
    """Test error (with the 95% interval of the accuracy) of the methods against a cost, and the Pareto front."""
    rows = [row for row in rows if row.accuracy is not None and row.costs.get(key) is not None]
    colours, figure = palette([row.method for row in rows]), empty_figure()
    points = [(float(row.costs[key] or 0), max(100 - 100 * (row.accuracy or 0), 0.01)) for row in rows]
    for row, (cost, error) in zip(rows, points, strict=True):
        spread = None if row.interval is None else [100 * row.interval]
        figure.add_scatter(
            x=[cost], y=[error], error_y={"array": spread, "thickness": 1}, name=_escape(row.method),
            hovertext=[_escape(row.method)], mode="markers", marker={"color": colours[row.method], "size": 9},
            showlegend=False,
        )  # fmt: skip
    _front(figure, points, sign=-1)
    (low, high), (best, worst) = (_range([math.log10(max(p[i], 1e-12)) for p in points]) for i in (0, 1))
    figure.update_xaxes(title=heading, type="log", range=[low, high])
    quantity = any(row.score == "r2" for row in rows)
    title = "variance that is not explained (1 - R2), %" if quantity else "test error, %"
    figure.update_yaxes(title=title, type="log", range=[worst, best])
    width, height = 540, 300  # of the part within the axes, about, in pixels
    spots = [
        (width * (math.log10(max(x, 1e-12)) - low) / (high - low), height * (math.log10(y) - best) / (worst - best))
        for x, y in points
    ]
    for (x, y), row, shift in zip(
        points, rows, place_labels(spots, [row.method for row in rows], width, height), strict=True
    ):
        figure.add_annotation(
            x=math.log10(max(x, 1e-12)), y=math.log10(y), ax=shift[0], ay=shift[1], text=_escape(row.method),
            font={"size": 10}, arrowhead=0, arrowwidth=0.7, arrowcolor="#9aa4b0", standoff=4, borderpad=0,
        )  # fmt: skip
    return finish(figure, f"Error against {heading}", height=460).update_layout(hovermode="closest")


def _range(numbers: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis with room around the numbers."""
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    room = 0.12 * (high - low) or 0.5
    return low - room, high + room


def _front(figure: go.Figure, points: Sequence[Sequence[float]], sign: int = 1) -> None:
    """A stepped line through the points that no other beats (higher; with sign -1 lower) at less cost."""
    front: list[Sequence[float]] = []
    for at in sorted(points, key=lambda at: (at[0], -sign * at[1])):
        if not front or sign * at[1] > sign * front[-1][1]:
            front.append(at)
    figure.add_scatter(
        x=[at[0] for at in front], y=[at[1] for at in front], mode="lines", name="Pareto front",
        line={"color": COLOURS[1], "shape": "hv"}, hoverinfo="skip",
    )  # fmt: skip


def degrees(record: RecordLike, layer: str, side: str) -> go.Figure:
    """How many units have how many connections, after the first, the middle and the last epoch."""
    figure = empty_figure()
    for i, snapshot in enumerate(s for s in record["topology"] if s["layer"] == layer):
        units = dict(map(tuple, snapshot[side]))
        known = sorted(units)
        figure.add_scatter(
            x=known, y=[units[d] for d in known], mode=_joined(known), name=f"epoch {snapshot['epoch'] + 1}",
            line={"dash": _EPOCHS[i % 3], "color": COLOURS[i % len(COLOURS)]},
        )  # fmt: skip
    what = "inputs a unit reads" if side == "fan_in" else "units that read an input"
    figure.update_xaxes(title=what)
    figure.update_yaxes(title="how many")
    return finish(figure, f"{_escape(layer)}: {'fan-in' if side == 'fan_in' else 'fan-out'}")


def connectivity(snapshot: Mapping[str, Any], shape: Sequence[int], most: int) -> go.Figure:
    """The connections of each input, as an image where the inputs are one, else as a strip."""
    counts = list(snapshot["input_connectivity"])
    height, width = (shape[-2], shape[-1]) if len(shape) == 3 else (1, len(counts))
    if len(shape) == 3 and shape[0] * height * width == len(counts):  # add up the channels
        plane = height * width
        counts = [sum(counts[c * plane + i] for c in range(shape[0])) for i in range(plane)]
    if height * width != len(counts):
        height, width = 1, len(counts)
    image = [counts[row * width : (row + 1) * width] for row in range(height)]
    figure = empty_figure()
    figure.add_heatmap(z=image, colorscale="Viridis", zmin=0, zmax=most, colorbar={"thickness": 10})
    figure.update_yaxes(autorange="reversed", visible=False, scaleanchor="x" if height > 1 else None)
    figure.update_xaxes(visible=False)
    return finish(figure, f"after epoch {snapshot['epoch'] + 1}", height=300 if height > 1 else 150)


def finish(figure: go.Figure, title: str, height: int = 340) -> go.Figure:
    return figure.update_layout(
        title={"text": title, "font": {"size": 15}, "x": 0, "xref": "paper"}, height=height, template="plotly_white",
        margin={"l": 50, "r": 15, "t": 50, "b": 45}, font={"family": "system-ui, sans-serif", "size": 12},
        legend={"orientation": "h", "y": -0.22}, hovermode="x unified", autosize=True,
    )  # fmt: skip


def _joined(points: Sequence[Any]) -> str:
    """Plotly's mode for a curve: a single point has no line to be seen by."""
    return "lines" if len(points) > 1 else "markers"


def _reach(values: Sequence[float]) -> dict[str, Any]:
    """The least to the largest of some values as error bars around their mean: a single point has no band."""
    mean = statistics.fmean(values)
    return {"array": [max(values) - mean], "arrayminus": [mean - min(values)]}


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def _escape(text: str) -> str:
    """Plotly reads a few tags in names: show them as they are."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
