"""How the page of all records opens: the verdicts of each document as bars, and the claims that matter."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from filigree.report import figures
from filigree.report.page import Figures
from filigree.report.table import COSTS, Row

if TYPE_CHECKING:
    import plotly.graph_objects as go

Data = Mapping[str, Any]
SHADES = {
    "reproduced": "#1b7f4b", "partly": "#e0a526", "not": "#c2453f", "open": "#9aa4b0", "no record": "#dfe4ea",
    "not made": "#f1f3f5",
}  # fmt: skip


def verdict_of(entry: Data) -> str:
    """The verdict of an entry of the listing; without one, why there is none."""
    return entry["verdict"] or ("not made" if entry["state"] == "not made" else "no record")


def badge(verdict: str) -> str:
    return f'<span class="badge {escape(verdict.replace(" ", "-"))}">{escape(verdict)}</span>'


def anchor(entry: Data) -> str:
    """The id of an entry on the page, which links name."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in f"{entry['document']} {entry['where']}")
    return kept.strip("-").lower()


def verdict_bars(listing: Sequence[Data]) -> go.Figure:
    """A bar a document, in parts by verdict, with their numbers."""
    documents = list(dict.fromkeys(entry["document"] for entry in listing))
    counted = {document: Counter(verdict_of(e) for e in listing if e["document"] == document) for document in documents}
    figure = figures.empty_figure()
    for verdict, colour in SHADES.items():
        numbers = [counted[document][verdict] for document in documents]
        figure.add_bar(
            y=[escape(str(document), quote=False) for document in documents], x=numbers, name=verdict, orientation="h",
            text=[str(number) if number else "" for number in numbers], textposition="inside", textangle=0,
            insidetextanchor="middle", marker={"color": colour, "line": {"color": "#fff", "width": 1}},
        )  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="entries: tables, figures and claims", showgrid=False)
    title = "Verdicts by document"
    return figures.finish(figure, title, height=150 + 42 * len(documents)).update_layout(
        hovermode="closest", legend={"traceorder": "normal", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"}
    )


def claims(given: Sequence[Data], listing: Sequence[Data], comparisons: Sequence[Data], numbered: Figures) -> str:
    """The claims that matter: what holds, the verdicts of its entries, and its methods against dense on all data.

    Args:
        given: title, text, methods (names in comparisons), cost (a key of `Row.costs`), and entries: pairs of document
            and place.
    """
    known = {(entry["document"], entry["where"]): entry for entry in listing}
    out = []
    for claim in given:
        entries = [known[tuple(place)] for place in claim["entries"] if tuple(place) in known]
        links = ", ".join(
            f'<a href="#{anchor(entry)}">{escape(entry["document"])}, {escape(entry["where"])}</a> '
            f"{badge(verdict_of(entry))}" for entry in entries
        )  # fmt: skip
        measured = _measured(claim["methods"], claim["cost"], comparisons)
        figure = against_dense(measured, claim["cost"])
        out.append(
            f"<section><h3>{escape(claim['title'])}</h3><p>{escape(claim['text'])}</p>"
            + _numbers(measured, claim["cost"])
            + (f"<p class=faint>{links}</p>" if links else "")
            + numbered.place(figure, f"{claim['title']}: accuracy minus dense against cost")
            + "</section>"
        )
    return '<h2>The claims that matter</h2><div class="grid claims">' + "".join(out) + "</div>" if out else ""


def _measured(
    methods: Sequence[str], cost: str, comparisons: Sequence[Data]
) -> dict[str, list[tuple[str, float, float, float, float]]]:
    """Method -> data set, ratio of the cost to dense, accuracy minus dense in points, both ends of its interval."""
    by_method: dict[str, list[tuple[str, float, float, float, float]]] = {}
    for comparison in comparisons:
        for row in (Row(**row) for row in comparison["rows"]):
            ratio = row.ratios.get(cost)
            if (
                row.score == "accuracy"
                and row.method in methods
                and row.against_dense is not None
                and ratio is not None
            ):
                mean, low, high = (100 * number for number in row.against_dense)
                name = str(comparison["name"]).removeprefix("compare-")
                by_method.setdefault(row.method, []).append((name, float(ratio), mean, low, high))
    return by_method


def _numbers(measured: Mapping[str, Sequence[Sequence[Any]]], cost: str) -> str:
    lines = []
    for method, points in measured.items():
        gain, ratio = (statistics.median(point[i] for point in points) for i in (2, 1))
        sets = f"{len(points)} data sets" if len(points) > 1 else "1 data set"
        lines.append(
            f"<li><b>{escape(method)}</b>: {gain:+.1f} points, {ratio:.2g} of dense's {_heading(cost)} "
            f"<span class=faint>(medians of {sets})</span></li>"
        )
    return f"<ul class=found>{''.join(lines)}</ul>" if lines else ""


def _heading(cost: str) -> str:
    return next((heading for key, heading, _ in COSTS if key == cost), cost).replace("training s", "training time")


def against_dense(measured: Mapping[str, Sequence[Sequence[Any]]], cost: str) -> go.Figure:
    """Accuracy minus dense, with its 95% interval, against the ratio of a cost; a point a data set."""
    figure, colours = figures.empty_figure(), figures.palette(list(measured))
    for method, points in measured.items():
        names, ratios, gains, lows, highs = zip(*points, strict=True)
        figure.add_scatter(
            x=ratios, y=gains, mode="markers", name=escape(str(method), quote=False),
            text=[escape(str(name), quote=False) for name in names], hovertemplate="%{text}: %{y:.1f} points, %{x:.2g}",
            marker={"color": colours[method], "size": 9},
            error_y={"array": [h - g for h, g in zip(highs, gains, strict=True)],
                     "arrayminus": [g - low for low, g in zip(lows, gains, strict=True)], "thickness": 1, "width": 0},
        )  # fmt: skip
    if not measured:
        return figure
    reached = [point[2] for points in measured.values() for point in points]
    figure.add_hline(y=0, line={"color": figures.DENSE, "dash": "dot", "width": 1})
    figure.update_xaxes(title=f"{_heading(cost)}, ratio to dense", type="log", dtick="D2", tickangle=0)
    figure.update_yaxes(title="accuracy minus dense, points", range=[min(*reached, -2.0) - 2, max(*reached, 2.0) + 2])
    above = {"y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"}
    return figures.finish(figure, "", height=280).update_layout(hovermode="closest", legend=above, margin={"t": 30})
