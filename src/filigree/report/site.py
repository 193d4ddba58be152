"""All records as one page for those who decide: comparisons, and every printed figure and claim with its verdict.

A folder that works without a network: `index.html`, a page an experiment, and plotly once for all of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filigree.io.storage import replacing
from filigree.report import figures
from filigree.report.chart import Chart
from filigree.report.computed import rows_table
from filigree.report.opening import anchor, badge, claims, verdict_bars, verdict_of
from filigree.report.page import Figures, plotly_script, write_page
from filigree.report.table import COSTS, Row, accuracy_text, commit_text, ratio_text, score_heading, short

if TYPE_CHECKING:
    import plotly.graph_objects as go

Data = Mapping[str, Any]

SCRIPT = "plotly.min.js"
VERDICTS = {
    "reproduced": "the printed figure lies within the 95% interval of ours, or the claim holds by a stated rule",
    "partly": "some parts of the claim hold",
    "not": "the interval of ours excludes it",
    "open": "a single run, a scaled experiment, or an interval too wide to decide",
    "no record": "there is no record in the folders that were read",
    "not made": "the library does not reproduce it; the entry says why",
}
SHOWN = ("parameters", "bytes_disk", "train_seconds", "train_joules", "single_ms", "batch_ms")  # of a comparison
FILTER = """
const entries = [...document.querySelectorAll('article')];
const controls = [...document.querySelectorAll('.filters :is(select, input)')];
const count = document.getElementById('count');
const filter = () => {
  let shown = 0;
  for (const entry of entries) {
    const text = entry.textContent.toLowerCase();
    const fits = controls.every(c => c.type === 'search' ? text.includes(c.value.toLowerCase())
      : !c.value || entry.dataset[c.name] === c.value);
    entry.hidden = !fits;
    shown += fits;
  }
  count.textContent = `${shown} of ${entries.length}`;
  document.querySelectorAll('section.document').forEach(s => s.hidden = !s.querySelector('article:not([hidden])'));
};
controls.forEach(c => c.addEventListener('input', filter));
filter();
"""


def write_site(
    folder: str | Path, listing: Sequence[Data], comparisons: Sequence[Data], charts: Mapping[str, Sequence[Chart]],
    headlines: Sequence[Data] = (),
) -> Path:  # fmt: skip
    """Write the folder; returns the path of its `index.html`.

    Args:
        listing: what `filigree reproduce --json` writes: the entries of all documents with findings and provenance.
        comparisons: what `filigree compare` writes into `comparison.json`.
        charts: of the experiments' pages, by the experiment's name.
        headlines: the claims that the page opens with, see `filigree.report.opening.claims`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / SCRIPT) as file:
        file.write(plotly_script().encode())
    experiments: dict[str, list[Data]] = {}
    for entry in listing:
        for maker in entry["by"]:
            if maker["path"] is not None:
                experiments.setdefault(maker["name"], []).append(entry)
    for name, entries in experiments.items():
        _write_experiment(folder / f"{name}.html", name, entries, charts.get(name, ()))
    numbered, counted = Figures(), Counter(verdict_of(entry) for entry in listing)
    body = [
        "<p>Each method on real data, beside dense training on the same machine"
        + (", and every table, figure and claim of the five source documents beside ours" if listing else "")
        + ". Weak results stay in.</p>",
        numbered.place(verdict_bars(listing), "verdicts by document") if listing else "",
        claims(headlines, listing, comparisons, numbered),
        _machines(listing, comparisons),
        _contents(comparisons, bool(listing)),
        *(_comparison(comparison, number, numbered) for number, comparison in enumerate(comparisons)),
    ]
    if listing:
        verdicts = ", ".join(f"{n} {badge(v)}" for v, n in counted.most_common())
        body.insert(1, f"<p>Of {len(listing)} entries: {verdicts}.</p>")
        body += [_documents(listing, experiments), f"<script>{FILTER}</script>"]
    return write_page(folder / "index.html", "What filigree does, measured", "".join(body), numbered, SCRIPT)


def _machines(listing: Sequence[Data], comparisons: Sequence[Data]) -> str:
    summaries = {maker["path"]: maker for entry in listing for maker in entry["by"] if maker["path"]}
    records = [*summaries.values(), *comparisons]
    machines = Counter(_machine(record) for record in records)
    commits = sorted({str(record["commit"])[:10] for record in records if record.get("commit")})
    lines = [f"{machine} ({number} records)" for machine, number in machines.most_common()]
    where = "; ".join(lines) or "no record yet"
    return (
        f"<p class=faint>Measured on {escape(where)}.</p><details><summary>{len(commits)} commits</summary>"
        f"<p class=faint>{escape(', '.join(commits))}</p></details>"
    )


def _machine(record: Data) -> str:
    machine, versions = record.get("machine") or {}, record.get("versions") or {}
    torch = f", torch {versions['torch']}" if "torch" in versions else ""
    return f"{machine.get('cpu', 'unknown')}, {_cores(machine.get('cores', '?'))}{torch}"


def _cores(*numbers: object) -> str:
    return f"{' or '.join(map(str, numbers))} core{'' if numbers == (1,) else 's'}"


def _contents(comparisons: Sequence[Data], documents: bool) -> str:
    links = [(f"c{number}", comparison["name"]) for number, comparison in enumerate(comparisons)]
    if documents:
        links.append(("documents", "the documents' tables, figures and claims"))
    return (
        "<nav aria-label=Contents><ul>"
        + "".join(f'<li><a href="#{at}">{escape(name)}</a></li>' for at, name in links)
        + "</ul></nav>"
    )


# -- comparisons -------------------------------------------------------------------------------------------------------


def _comparison(comparison: Data, number: int, numbered: Figures) -> str:
    rows = [Row(**row) for row in comparison["rows"]]
    known = [
        (key, heading, form) for key, heading, form in COSTS if key in SHOWN and any(row.costs.get(key) for row in rows)
    ]
    head = "".join(
        f"<th scope=col>{escape(h)}</th>"
        for h in ("method", f"{score_heading(rows)}, 95%", "minus dense, 95%", *(h for _, h, _ in known))
    )
    body = []
    for row in rows:
        cells = [f"<th scope=row>{escape(row.method)}</th>", f"<td>{_accuracy(row)}</td>", f"<td>{_against(row)}</td>"]
        for key, _, _ in known:
            value, ratio = row.costs.get(key), row.ratios.get(key)
            below = f"<small>{ratio_text(ratio)}</small>" if ratio is not None else ""
            cells.append(f"<td>{'-' if value is None else short(value)}{below}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    charts = "".join(
        numbered.place(figures.trade(rows, key, heading), f"{comparison['name']}: test error against {heading}")
        for key, heading in figures.TRADES.items()
    )
    counts = " or ".join(dict.fromkeys(str(row.runs) for row in rows))
    runs = escape(f"{counts} run{'s' * (counts != '1')}")
    name, commit = escape(comparison["name"]), escape(commit_text(comparison.get("commit")))
    return (
        f'<section><h2 id="c{number}">{name}</h2><p>{escape(comparison["about"])}</p>'
        f'<div class=scroll tabindex=0 role=region aria-label="{name}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div><p class=faint>{runs} of each method; "
        f"below each cost its ratio to dense; {escape(_machine(comparison))}, {commit}.</p>"
        f"<div class=grid>{charts}</div>{_notes(comparison.get('notes', []))}</section>"
    )


def _accuracy(row: Row) -> str:
    if row.accuracy is None or row.interval is None:
        return escape(accuracy_text(row))
    return f"{row.text(row.accuracy)} ± {row.text(row.interval)}"


def _against(row: Row) -> str:
    if row.against_dense is None:
        return "-"
    mean, low, high = (row.text(number, "+") for number in row.against_dense)
    return f"{mean}<small>{low} to {high}</small>"


# -- the documents -----------------------------------------------------------------------------------------------------


def _documents(listing: Sequence[Data], experiments: Mapping[str, Any]) -> str:
    titles = {entry["document"]: entry["title"] for entry in listing}
    out = [
        '<h2 id="documents">The documents\' tables, figures and claims</h2>',
        "<ul class=legend>"
        + "".join(f"<li>{badge(name)} {escape(text)}</li>" for name, text in VERDICTS.items())
        + "</ul>",
        _filters(listing, titles),
    ]
    for document, title in titles.items():
        mine = [entry for entry in listing if entry["document"] == document]
        counts = ", ".join(f"{n} {v}" for v, n in Counter(verdict_of(entry) for entry in mine).most_common())
        out.append(
            f"<section class=document><h3>{escape(document)}: {escape(title)}</h3><p class=faint>{escape(counts)}</p>"
        )
        out += [_entry(entry, "h4", experiments) for entry in mine]
        out.append("</section>")
    return "".join(out)


def _filters(listing: Sequence[Data], titles: Mapping[str, str]) -> str:
    choices = {
        "document": {document: document for document in titles},
        "state": {state: state for state in dict.fromkeys(entry["state"] for entry in listing)},
        "verdict": {verdict: verdict for verdict in VERDICTS},
    }
    selects = "".join(
        f'<label>{name} <select name="{name}"><option value="">all</option>'
        + "".join(f'<option value="{escape(value)}">{escape(label)}</option>' for value, label in values.items())
        + "</select></label>"
        for name, values in choices.items()
    )
    return (
        f'<form class=filters onsubmit="return false">{selects}<label>text <input type=search name=text></label>'
        "<output id=count aria-live=polite></output></form>"
    )


def _minutes(entry: Data) -> str:
    if entry["minutes"] is None:
        return ""
    cores = dict.fromkeys((maker["machine"] or {}).get("cores", "?") for maker in entry["by"] if maker["path"])
    return f", {'about ' if entry['estimated'] else ''}{entry['minutes']:.1f} minutes on {_cores(*cores)}"


def _entry(entry: Data, heading: str, experiments: Mapping[str, Any] | None = None) -> str:
    commands = []
    for maker in entry["by"]:
        command = f"<code>{escape(maker['command'])}</code>"
        page = (
            f' <a href="{escape(maker["name"])}.html">its page</a>'
            if experiments and maker["name"] in experiments
            else ""
        )
        part = f", {maker['done']} of {maker['asked']} runs" if maker["path"] and maker["done"] < maker["asked"] else ""
        why = f" {escape(maker['stands'])}" if maker.get("stands") else ""
        commands.append(f"<li>{command} (record: {escape(maker['record'])}{part}){page}{why}</li>")
    findings = "".join(
        f"<li>{badge(finding['verdict'])} {escape(finding['text'])}</li>" for finding in entry["findings"]
    )
    return (
        f'<article id="{anchor(entry)}" data-document="{escape(entry["document"])}" '
        f'data-state="{escape(entry["state"])}" data-verdict="{escape(verdict_of(entry))}">'
        f"<{heading}>{escape(entry['where'])} {badge(verdict_of(entry))} "
        f"<small>{escape(entry['state'] + _minutes(entry))}</small></{heading}><p>{escape(entry['about'])}</p>"
        + (f"<p class=slip><b>The document's slip:</b> {escape(entry['slip'])}</p>" if entry["slip"] else "")
        + (f"<p class=faint>{escape(entry['reason'])}</p>" if entry["reason"] else "")
        + (f"<p><b>Why not:</b> {escape(entry['assessment'])}</p>" if entry.get("assessment") else "")
        + (
            f"<details><summary>Findings: {len(entry['findings'])}</summary><ul class=found>{findings}</ul></details>"
            if findings
            else ""
        )
        + (f"<ul class=made>{''.join(commands)}</ul>" if commands else "")
        + "</article>"
    )


# -- a page an experiment ----------------------------------------------------------------------------------------------


def _write_experiment(path: Path, name: str, entries: Sequence[Data], charts: Sequence[Chart]) -> None:
    maker = next(maker for maker in entries[0]["by"] if maker["name"] == name)
    summary = json.loads(Path(maker["path"]).read_text())
    numbered, rows = Figures(), summary["rows"]
    figures_beside = [
        finding
        for entry in entries
        for finding in entry["findings"]
        if finding["by"] == name and finding["printed"] is not None
    ]
    facts = [_machine(maker), commit_text(maker["commit"], maker["dirty"]),
             f"finished {maker['finished']}", f"record: {maker['record']}"]  # fmt: skip
    body = [
        '<p><a href="index.html">All records</a></p>',
        f"<p class=faint>{escape('; '.join(facts))}</p><p><code>filigree reproduce {escape(name)}</code></p>",
        *(_entry(entry, "h2") for entry in entries),
        numbered.place(beside(figures_beside), "printed figures beside ours"),
        *(numbered.place(figures.lines(rows, chart), chart.title) for chart in charts),
        rows_table(rows),
        _notes(summary.get("notes", [])),
    ]
    write_page(path, name, "".join(body), numbered, SCRIPT)


def beside(findings: Sequence[Data]) -> go.Figure:
    """Printed figures and ours with their 95% intervals, each as a ratio to the printed one."""
    known = [finding for finding in findings if finding["printed"]]
    figure = figures.empty_figure()
    if not known:
        return figure
    texts = [escape(str(finding["text"]), quote=False) for finding in known]  # plotly reads a few tags
    names = [text.partition(": printed")[0] for text in texts]
    low = [finding["ours"] - (finding["interval"] or [finding["ours"]])[0] for finding in known]
    spread = [gap / abs(finding["printed"]) for gap, finding in zip(low, known, strict=True)]
    figure.add_scatter(
        x=[finding["ours"] / finding["printed"] for finding in known], y=names, mode="markers", name="ours",
        error_x={"array": spread}, text=texts, hoverinfo="text", marker={"size": 9},
    )  # fmt: skip
    figure.add_vline(x=1, line={"color": figures.DENSE, "dash": "dot"})
    figure.update_xaxes(title="ours / printed, with the 95% interval")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figures.finish(figure, "Printed figures beside ours", height=140 + 24 * len(known)).update_layout(
        hovermode="closest"
    )


def _notes(notes: Sequence[str]) -> str:
    return f"<ul class=faint>{''.join(f'<li>{escape(str(note))}</li>' for note in notes)}</ul>" if notes else ""
