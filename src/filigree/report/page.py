"""Records as one self-contained HTML page: no network, no other file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from filigree.io.storage import replacing
from filigree.optional import needed
from filigree.report import figures
from filigree.report.table import (
    RecordLike,
    Row,
    accuracy_text,
    by_recipe,
    commit_text,
    known_costs,
    ratio_text,
    score_heading,
    summary_table,
)
from filigree.train import Record, find_records

if TYPE_CHECKING:
    import plotly.graph_objects as go

STYLE = """
:root { color-scheme: light; --ink: #1c2024; --faint: #5b6470; --line: #d9dee4; --paper: #fff; --tint: #f5f7f9; }
* { box-sizing: border-box } body { margin: 0; background: var(--paper); color: var(--ink);
font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif }
main { max-width: 1280px; margin: 0 auto; padding: 1.5rem 1.2rem 4rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem } h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem } p { max-width: 120ch; margin: .4rem 0 } .faint { color: var(--faint) }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .4rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { background: var(--tint); font-weight: 600 } thead th { white-space: normal; vertical-align: bottom }
tbody tr:last-child > * { border-bottom: 0 }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper) }
th:first-child { background: var(--tint) } td small { color: var(--faint); display: block }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .5em }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1rem }
.claims { grid-template-columns: repeat(auto-fit, minmax(min(100%, 370px), 1fr)) }
.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)) }
figure { margin: 0; min-width: 0; overflow: hidden } details { margin: .5rem 0; border: 1px solid var(--line);
border-radius: 6px; padding: .5rem .8rem } summary { cursor: pointer; font-weight: 600 }
pre { overflow-x: auto; font-size: .8rem; background: var(--tint); padding: .8rem; border-radius: 6px }
.badge { display: inline-block; padding: 0 .5em; border-radius: 1em; font-size: .8rem; font-weight: 600;
border: 1px solid currentColor; white-space: nowrap } .reproduced { color: #14532d; background: #e3f4e9 }
.partly { color: #713f12; background: #fdf3d7 } .not { color: #8b1a1a; background: #fdeaea }
.open { color: #374151; background: #eef1f4 } .no-record, .not-made { color: #4b5563; background: #fff }
article { border-top: 1px solid var(--line); padding: .6rem 0 } article > :first-child { margin: 0; font-size: 1rem }
article > :first-child small { color: var(--faint); font-weight: 400 }
.slip { border-left: 3px solid #b45309; padding-left: .6rem }
.filters { display: flex; flex-wrap: wrap; gap: .6rem 1rem; position: sticky; top: 0; background: var(--paper);
padding: .6rem 0; z-index: 1; align-items: center } .filters :is(select, input) { font: inherit; max-width: 12rem }
.legend, .made, .found { padding-left: 1.1rem; margin: .3rem 0 } .legend { list-style: none; padding: 0 }
code { font-size: .85em; overflow-wrap: anywhere } nav ul { columns: 2; padding-left: 1.1rem }
:focus-visible { outline: 3px solid #0072b2; outline-offset: 2px } td small, th small { font-weight: 400 }
@media (max-width: 600px) { nav ul { columns: 1 } main { padding: 1rem .6rem 3rem } h1 { font-size: 1.35rem } }
@page { margin: 1cm }
@media print { .filters, .modebar, button { display: none } article, figure, tr { break-inside: avoid }
details > * { display: block } .scroll { overflow: visible; border: 0 }
table { font-size: min(6.5pt, 115pt / var(--columns, 1)) } th, td { white-space: normal; padding: .2rem }
td small { white-space: nowrap } }
"""


DRAW = """
const draw = root => root.querySelectorAll('figure').forEach(place => {
  const hidden = place.closest('details:not([open])');
  if (hidden || place.data) return;
  const f = figures[+place.id.slice(1)];
  Plotly.newPlot(place, f.data, f.layout, {responsive: true, displayModeBar: false});
});
draw(document);
document.querySelectorAll('button.scale').forEach(button => button.addEventListener('click', () => {
  const log = button.getAttribute('aria-pressed') !== 'true', type = log ? 'log' : 'linear';
  button.setAttribute('aria-pressed', log);
  const places = button.nextElementSibling.querySelectorAll('figure');
  places.forEach(place => Plotly.relayout(place, {'xaxis.type': type, 'yaxis.type': type}));
}));
document.querySelectorAll('details').forEach(d => d.addEventListener('toggle', () => draw(d)));
const resize = layout => document.querySelectorAll('figure').forEach(place => Plotly.relayout(place, layout(place)));
addEventListener('beforeprint', () => {
  document.querySelectorAll('details').forEach(d => { d.open = true; draw(d) });
  resize(place => ({width: Math.min(place.offsetWidth, 640)}));
});
addEventListener('afterprint', () => resize(() => ({width: null, autosize: true})));
"""


def write_report(
    records: str | Path | Sequence[RecordLike | str | Path], path: str | Path, title: str | None = None
) -> Path:
    """Write one HTML page about runs; returns its path.

    Args:
        records: records, or files or folders of them (searched for `record.json`); one folder alone will do.
        path: the page; it takes the place of an older one only when it is whole.

    Raises:
        FileNotFoundError, ValueError: no record, or a file that is none, in one line.
    """
    loaded = list(_load([records] if isinstance(records, str | Path) else records))
    if not loaded:
        raise ValueError("report: at least one record is expected. Got none.")
    groups = by_recipe(loaded)
    title = title or " and ".join(groups) or "filigree"
    numbered = Figures()
    body = "".join(_section(name, methods, numbered) for name, methods in groups.items())
    return write_page(path, title, _provenance(loaded) + body, numbered)


def plotly_script() -> str:
    """The JavaScript of plotly, which a page carries along."""
    return needed("plotly.offline", "write_report", "report").get_plotlyjs()


def write_page(path: str | Path, title: str, body: str, numbered: Figures, script: str | None = None) -> Path:
    """Write a page around `body`, which shows the figures of `numbered`, with plotly inside or in the file `script`."""
    library = f' src="{script}">' if script else f">{plotly_script()}"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)} - filigree</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style><script{library}</script></head><body><main>"
        f"<h1>{escape(title)}</h1>{body}</main>{numbered.script()}</body></html>"
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as file:
        file.write(page.encode())
    return target


class Figures:
    """Collects a page's figures: `place` gives the element for the text, `script` the data for the page's end."""

    def __init__(self) -> None:
        self.data: list[Any] = []

    def place(self, figure: go.Figure, label: str) -> str:
        if not figure.data:
            return ""
        self.data.append(json.loads(figure.to_json()))
        number = len(self.data) - 1
        return f'<figure id="f{number}" role="img" aria-label="{escape(label)}"></figure>'

    def script(self) -> str:
        content = json.dumps(self.data).replace("<", "\\u003c")  # nothing in a record can end the script
        return f"<script>const figures = {content};{DRAW}</script>"


def _load(records: Sequence[RecordLike | str | Path]) -> Iterator[RecordLike]:
    for item in records:
        if isinstance(item, Mapping):
            yield item
        else:
            yield from map(_read, find_records(item))


def _read(file: Path) -> RecordLike:
    try:
        return Record.load(file).model_dump()
    except OSError as error:
        raise FileNotFoundError(f"report: {file}: {error.strerror or error}.") from None
    except ValueError as error:
        raise ValueError(f"report: {error}") from None


def _section(name: str, methods: Mapping[str, list[RecordLike]], numbered: Figures) -> str:
    runs = [run for group in methods.values() for run in group]
    config = runs[0].get("config", {})
    out = [f"<h2>{escape(name or 'runs')}</h2>"]
    out.append(_answer(summary_table(runs)))
    if about := config.get("about"):
        out.append(f"<p>{_with_code(str(about).strip())}</p>")
    notes = list(dict.fromkeys(str(note) for run in runs for note in run.get("notes", [])))
    out.append(_table(runs))
    out.append(
        "<p class=faint>Means over the runs (medians of times); after ± the standard deviation of the accuracy, the "
        "number of runs in brackets, then the 95% t intervals of the mean and of the paired difference to dense, both "
        "corrected (Nadeau and Bengio 2003) where runs share training samples, as folds and resampled splits do; below "
        "each cost its ratio to dense, measured in the same process in turns.</p>"
    )
    out += [f"<p class=faint>{_with_code(note)}</p>" for note in notes]
    out.append(_published(config, methods))
    if config.get("sweep"):
        out.append(f"<h3>Search</h3>{numbered.place(figures.pareto(runs), 'accuracy against cost of all trials')}")
    out += [*_accuracy(methods, numbered), *_costs(runs, numbered), *_rewiring(methods, numbered)]
    out += [*_topology(methods, numbered, config.get("data", {}).get("input_shape", [])), _details(methods)]
    return "".join(out)


def _with_code(text: str) -> str:
    """Text as HTML, what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _answer(rows: Sequence[Row]) -> str:
    """A line for each method: what it takes of dense, and how its score differs."""
    dense = next((row for row in rows if row.method == "dense"), None)
    lines = []
    for row in rows if dense is not None else ():
        ratios = {"parameters": row.ratios["parameters"], "training time": row.ratios["train_seconds"]}
        facts = [f"{ratio_text(ratio)} the {what}" for what, ratio in ratios.items() if ratio is not None]
        if dense is not None and row.accuracy is not None and dense.accuracy is not None:
            change, *bounds = row.against_dense or (row.accuracy - dense.accuracy,)
            between = f" (95%: {' to '.join(row.text(bound, '+') for bound in bounds)})" if bounds else ""
            score = (
                f"accuracy {row.text(change, '+')} points" if row.score == "accuracy" else f"R2 {row.text(change, '+')}"
            )
            facts.append(f"test {score}{between}")
        if row is not dense and facts:
            lines.append(f"<li><b>{escape(row.method)}</b>: {escape(', '.join(facts))}</li>")
    return f"<p>Against dense:</p><ul>{''.join(lines)}</ul>" if lines else ""


def _table(runs: Sequence[RecordLike]) -> str:
    rows = summary_table(runs)
    colours = figures.palette([row.method for row in rows])
    costs = known_costs(rows)
    head = "".join(
        f"<th scope=col>{h}</th>" for h in ("method", score_heading(rows), *(heading for _, heading, _ in costs))
    )
    body = []
    for row in rows:
        swatch = f'<span class=swatch style="background:{colours[row.method]}"></span>'
        cells = [f"<th scope=row>{swatch}{escape(row.method)}</th>"]
        interval = "" if row.interval is None else f"<small>95%: ± {row.text(row.interval)}</small>"
        if row.against_dense:
            mean, low, high = (row.text(number, "+") for number in row.against_dense)
            interval += f"<small>to dense {mean} ({low}, {high})</small>"
        cells.append(f"<td>{accuracy_text(row)}{interval}</td>")
        for key, _, form in costs:
            value, ratio, spread = row.costs[key], row.ratios[key], row.spreads.get(key)
            hover = f' title="10% to 90%: {spread[0]:.3g} to {spread[1]:.3g}"' if spread else ""
            below = f"<small>{ratio_text(ratio)}</small>" if ratio is not None else ""
            cells.append(f"<td{hover}>{'-' if value is None else form.format(value)}{below}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        '<div class=scroll tabindex=0 role=region aria-label="Results"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _published(config: Mapping[str, Any], methods: Mapping[str, list[RecordLike]]) -> str:
    printed = config.get("published") or {}
    lines = []
    for label, key, arms in (
        ("dense", "dense_parameters", ["dense"]), ("sparse", "sparse_parameters", [m for m in methods if m != "dense"])
    ):  # fmt: skip
        counts = [methods[m][0]["cost"].get("parameters") for m in arms if m in methods]
        if printed.get(key) and counts and counts[0]:
            off = counts[0] / printed[key] - 1
            lines.append(f"<li>{label} parameters: printed {printed[key]:,.0f}, ours {counts[0]:,} ({off:+.1%})</li>")
    return f"<h3>Printed figures, ours beside</h3><ul>{''.join(lines)}</ul>" if lines else ""


def _accuracy(methods: Mapping[str, list[RecordLike]], numbered: Figures) -> list[str]:
    out = ["<h3>Accuracy and loss</h3><div class=grid>"]
    for part, label in (("test", "test"), ("val", "validation"), ("train", "training")):
        for x in ("epoch", "elapsed"):
            what = "against training time" if x == "elapsed" else "by epoch"
            for kind, scale, unit in (("accuracy", 100.0, ", %"), ("r2", 1.0, ""), ("loss", 1.0, "")):
                title = f"{label} {kind}{unit} {what}"
                out.append(numbered.place(figures.curves(methods, f"{part}_{kind}", x, title, scale), title))
    return [*out, "</div>"]


def _costs(runs: Sequence[RecordLike], numbered: Figures) -> list[str]:
    sizes = {"parameters": "parameters", "nonzeros": "nonzeros"}
    stored = {"bytes_memory": "in memory", "bytes_disk": "on disk"}
    times = {
        "train_step_ms": "training step",
        "train_seconds": "training",
        "train_joules": "energy of training",
        "batch_ms": "batch",
        "single_ms": "one sample",
    }
    rows = summary_table(runs)
    titles = ("Parameters (log scale)", "Bytes (log scale)", "Time, as a ratio to dense")
    return [
        "<h3>What it costs</h3><div class=grid>",
        numbered.place(figures.bars(runs, sizes, titles[0], ratio=False, log=True), titles[0]),
        numbered.place(figures.bars(runs, stored, titles[1], ratio=False, log=True), titles[1]),
        numbered.place(figures.bars(runs, times, titles[2], ratio=True), titles[2]),
        *(
            numbered.place(figures.trade(rows, key, heading), f"test error against {heading}")
            for key, heading in figures.TRADES.items()
            if len(rows) > 2
        ),
        "</div>",
    ]


def _rewiring(methods: Mapping[str, list[RecordLike]], numbered: Figures) -> list[str]:
    evolving = {m: runs for m, runs in methods.items() if any("zeta" in row for run in runs for row in run["history"])}
    if not evolving:
        return []
    shares = []
    for method, runs in evolving.items():
        values = [run["metrics"]["rewire_share"] for run in runs if run["metrics"].get("rewire_share") is not None]
        if values:
            shares.append(f"{escape(method)} {sum(values) / len(values):.2%}")
    title = "zeta, the share of connections rewired after each epoch"
    share = f"<p>Rewiring's share of the training time: {', '.join(shares)}.</p>" if shares else ""
    return [
        f"<h3>Rewiring</h3>{share}<div class=grid>",
        numbered.place(figures.curves(evolving, "zeta", "epoch", title), title),
        "</div>",
    ]


def _topology(methods: Mapping[str, list[RecordLike]], numbered: Figures, shape: Sequence[int]) -> list[str]:
    out: list[str] = []
    moving = {m for m, runs in methods.items() if any(row.get("zeta") for run in runs for row in run["history"])}
    for method, runs in sorted(methods.items(), key=lambda item: item[0] not in moving):
        run = next((run for run in runs if run["topology"]), None)
        if run is None:
            continue
        layers = list(dict.fromkeys(s["layer"] for s in run["topology"]))
        opened = "" if out else " open"
        out.append(f"<details{opened}><summary>{escape(method)}, run {escape(str(run.get('seed')))}</summary>")
        images = [s for s in run["topology"] if s.get("input_connectivity")][: None if method in moving else 1]
        if images:
            most = max(max(s["input_connectivity"]) for s in images)
            out.append("<h3>Connections of each input</h3><div class='grid three'>")
            out += [
                numbered.place(
                    figures.connectivity(s, shape, most), f"connections of each input, epoch {s['epoch'] + 1}"
                )
                for s in images
            ]
            out.append("</div>")
        out.append("<h3>Degrees</h3><button type=button class=scale aria-pressed=false>log-log axes</button>")
        out.append("<div class=grid>")
        for layer in layers:
            for side in ("fan_in", "fan_out"):
                out.append(numbered.place(figures.degrees(run, layer, side), f"{side} of {layer}"))
        out.append("</div></details>")
    return ["<h3>Topology</h3>", *out] if out else []


def _details(methods: Mapping[str, list[RecordLike]]) -> str:
    out = ["<h3>Configuration</h3>"]
    for method, runs in methods.items():
        seeds = ", ".join(str(run.get("seed")) for run in runs)
        text = yaml.safe_dump(json.loads(json.dumps(runs[0].get("config", {}))), sort_keys=False, allow_unicode=True)
        out.append(f"<details><summary>{escape(method)} (runs {escape(seeds)})</summary>")
        out.append(f"<pre tabindex=0>{escape(text)}</pre></details>")
    return "".join(out)


def _provenance(records: Sequence[RecordLike]) -> str:
    """When and where all of the records were made, and with what."""
    ends = [r.get("finished") for r in records]
    unfinished = f", {ends.count(None)} unfinished" if None in ends else ""
    started = [r["started"] for r in records if r.get("started")]
    machines = (
        f"{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('threads')} threads, "
        f"{machine.get('isa') or ''} kernels, {machine.get('os')}"
        for machine in (r.get("machine", {}) for r in records)
    )
    versions = (", ".join(f"{name} {each}" for name, each in r.get("versions", {}).items()) for r in records)
    facts = [
        f"{len(records)} runs, {min(started, default=None)} to {max(filter(None, ends), default=None)}{unfinished}",
        *dict.fromkeys(machines),
        *dict.fromkeys(versions),
        ", ".join(sorted({commit_text(r.get("commit"), r.get("dirty", False)) for r in records})),
    ]
    return "".join(f"<p class=faint>{escape(fact)}</p>" for fact in facts)
