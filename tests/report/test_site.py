"""The pages about all records, on a listing made here; also in a real browser."""

import json
import re
from itertools import combinations, pairwise
from unittest.mock import ANY

import pytest
from test_report import record

from browser import browse
from filigree.io.storage import write_json
from filigree.report import Chart, cell_text, load_comparisons, summary, write_site
from filigree.report.label_placement import place_labels
from filigree.report.opening import verdict_bars
from filigree.report.site import beside

EVIL = "</script><script>alert(1)</script>"
IMAGE = '"><img/src=x/onerror=alert(1)>'


def maker(path, name="made"):
    return {"command": f"filigree reproduce {name}", "name": name, "case": None, "record": "current", "path": path,
            "done": 1, "asked": 2, "commit": "0123456789abcdef", "dirty": False, "finished": "2026-01-01",
            "machine": {"cpu": "One", "cores": 2}, "versions": {"torch": "2"}}  # fmt: skip


def entry(document, where, state="full", verdict=None, **more):
    return {"document": document, "title": f"Title of {document}", "where": where, "about": f"About {where}.",
            "state": state, "reason": "", "slip": "", "verdict": verdict, "findings": [], "minutes": None,
            "estimated": False, "by": []} | more  # fmt: skip


@pytest.fixture
def listing(tmp_path):
    rows = [{"x": "1", "y": [0.5, 0.1]}, {"x": "2", "y": [0.7, 0.1]}]
    (tmp_path / "made.json").write_text(json.dumps({"rows": rows, "notes": [EVIL]}))
    found = {"by": "made", "where": "Srivastava 2022, Table 1", "verdict": "not", "text": "error: printed 2, ours 3.",
             "printed": 2.0, "ours": 3.0, "difference": 1.0, "interval": [2.5, 3.5]}  # fmt: skip
    return [
        entry("000", "Table 1", verdict="not", findings=[found], by=[maker(str(tmp_path / "made.json"))], minutes=2.0),
        entry("000", "Fig. 2", state="not made", reason=EVIL, slip="A slip."),
        entry("001", "Table 3", state="scaled", by=[maker(None, "other") | {"record": "none"}]),
    ]


@pytest.fixture
def compared():
    runs = [
        record(m, seed, a + seed / 100, s) for m, a, s in (("dense", 0.9, 4.0), ("SET", 0.91, 1.0)) for seed in (0, 1)
    ]
    return [summary(runs)]


def test_what_stands_where(listing, compared, tmp_path):
    site = tmp_path / "site"
    index = write_site(site, listing, compared, {"made": [Chart("x", "y", title="y against x")]}).read_text()
    assert sorted(p.name for p in site.iterdir()) == ["index.html", "made.html", "plotly.min.js"]
    assert "<script>alert" not in index + (site / "made.html").read_text()
    articles = re.findall("<article.*?</article>", index)
    assert len(articles) == 3
    assert 'data-verdict="not"' in articles[0]
    assert 'href="made.html"' in articles[0]
    assert "error: printed 2, ours 3." in articles[0]
    assert "1 of 2 runs" in articles[0]
    assert "A slip." in articles[1]
    assert 'data-verdict="not made"' in articles[1]
    assert 'data-verdict="no record"' in articles[2]
    assert "other.html" not in articles[2]
    assert "91.50 ± 8.98" in index  # SET, two runs on splits that share training samples
    page = (site / "made.html").read_text()
    assert "ours / printed" in page
    assert "y against x" in page
    assert "0.5 ± 0.1" in page
    assert "0123456789" in page


def test_how_many_runs_a_comparison_has(compared, tmp_path):
    assert "<p class=faint>2 runs of each method; " in write_site(tmp_path, [], compared, {}).read_text()
    compared[0]["rows"][1]["runs"] = 5
    assert "<p class=faint>2 or 5 runs of each method; " in write_site(tmp_path, [], compared, {}).read_text()
    compared[0]["rows"] = [row | {"runs": 1} for row in compared[0]["rows"]]
    assert "<p class=faint>1 run of each method; " in write_site(tmp_path, [], compared, {}).read_text()


def test_how_the_page_opens(listing, compared, tmp_path):
    """With bars of verdicts by document, and claims whose figures come from the comparisons."""
    bars = verdict_bars(listing)
    assert {bar.name: list(bar.x) for bar in bars.data if sum(bar.x)} == {
        "not": [1, 0], "no record": [0, 1], "not made": [1, 0]
    }  # fmt: skip
    assert list(bars.data[0].y) == ["000", "001"]
    headline = {"title": "Sparse is <fast>", "text": "It holds.", "methods": ["SET"], "cost": "train_seconds",
                "entries": [("000", "Table 1"), ("000", "Table 99")]}  # fmt: skip
    index = write_site(tmp_path, listing, compared, {}, [headline]).read_text()
    assert "Sparse is &lt;fast&gt;" in index
    assert "<b>SET</b>: +1.0 points, 0.25 of dense's training time" in index
    assert '<a href="#000-table-1">000, Table 1</a> <span class="badge not">' in index
    assert '<article id="000-table-1"' in index
    assert "Table 99" not in index
    assert index.index("Verdicts by document") > index.index("Sparse is &lt;fast&gt;")  # drawn by the script at the end
    assert index.index('id="f0"') < index.index("The claims that matter") < index.index('id="c0"')


def test_why_not_and_why_a_record_stands(listing, tmp_path):
    listing[0] |= {"assessment": f"Too few epochs {IMAGE}"}
    listing[0]["by"][0] |= {"stands": f"It takes days {IMAGE}"}
    page = write_site(tmp_path, listing, [], {}).read_text()
    assert "<b>Why not:</b> Too few epochs" in page
    assert "It takes days" in page
    assert "<img" not in page


def test_labels_of_crowded_points_keep_apart():
    """Twelve methods in a corner, three elsewhere, in a chart of 540 x 300."""
    points = [(60 + 9 * i % 40, 40 + 7 * i % 50) for i in range(12)] + [(300, 150), (500, 20), (530, 290)]
    labels = [f"method {'of many words' * (i % 3 == 0)}{i}" for i in range(15)]
    boxes = []
    for (x, y), label, (dx, dy) in zip(points, labels, place_labels(points, labels, 540, 300), strict=True):
        half = 3 * len(label)
        boxes.append((x + dx - half, y + dy - 6.5, x + dx + half, y + dy + 6.5))
    for left, top, right, bottom in boxes:
        assert min(left, top) >= 0
        assert right <= 540
        assert bottom <= 300
        assert not any(left < x < right and top < y < bottom for x, y in points)
    for a, b in combinations(boxes, 2):
        assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


def test_nothing_in_a_record_becomes_markup(listing, compared, tmp_path):
    listing[0]["verdict"] = listing[0]["findings"][0]["verdict"] = IMAGE
    listing[0]["findings"][0]["text"] = IMAGE
    listing[0]["by"][0]["machine"] = {"cpu": IMAGE, "cores": IMAGE}
    (tmp_path / "made.json").write_text(json.dumps({"rows": [{IMAGE: IMAGE, "more": {IMAGE: [IMAGE]}}]}))
    compared[0] |= {"name": IMAGE, "about": IMAGE, "commit": IMAGE, "notes": [IMAGE]}
    compared[0]["rows"][0] |= {"runs": IMAGE, "method": IMAGE}
    index = write_site(tmp_path / "site", listing, compared, {})
    for page in (index, index.with_name("made.html")):
        assert "<img" not in page.read_text()
    assert "&lt;img" in beside(listing[0]["findings"]).to_json().replace("\\u003c", "<")  # plotly reads a few tags


def test_levels_of_headings_and_heads_of_rows(listing, compared, tmp_path):
    index = write_site(tmp_path / "site", listing, compared, {})
    for page in (index, index.with_name("made.html")):
        levels = [int(level) for level in re.findall(r"<h(\d)", page.read_text())]
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert "<tbody><tr><th scope=row>" in page.read_text()


def test_records_are_counted_once_and_cores_are_those_of_the_machine(listing, tmp_path):
    listing[2]["by"] = listing[0]["by"]
    listing[0]["by"][0]["machine"]["cores"] = 64
    index = write_site(tmp_path / "site", listing, [], {}).read_text()
    assert "One, 64 cores, torch 2 (1 records)" in index
    assert "2.0 minutes on 64 cores" in index


def test_comparisons_are_found(compared, tmp_path):
    newer = dict(compared[0], finished="2999", notes=["newer"])
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    write_json(tmp_path / "runs" / "a" / "comparison.json", compared[0])
    write_json(tmp_path / "results" / "a.json", newer)
    write_json(tmp_path / "results" / "else.json", [1])
    write_json(tmp_path / "results" / "summary.json", {"format": "filigree-summary/1", "name": "a"})
    lines = []
    (found,) = load_comparisons([tmp_path / "runs", tmp_path / "results"], lines.append)
    assert found["notes"] == ["newer"]
    assert lines == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "filigree-comparison/0"}, "format: Input"),
        ({"rows": []}, "rows: List"),
        ({"name": 1}, "name: Input"),
    ],
)
def test_comparisons_that_cannot_be_read_are_named(compared, tmp_path, change, says):
    (tmp_path / "runs" / "b").mkdir(parents=True)
    write_json(tmp_path / "compare-a.json", compared[0])
    write_json(tmp_path / "compare-b.json", compared[0] | change)
    write_json(tmp_path / "runs" / "b" / "comparison.json", compared[0] | change)
    (tmp_path / "truncated.json").write_text("{")
    lines = []
    (found,) = load_comparisons([tmp_path / "runs", tmp_path], lines.append)
    assert found == compared[0] | {"rows": [dict(row, spreads=ANY, against_dense=ANY) for row in compared[0]["rows"]]}
    assert [line.partition(":")[0].rpartition("/")[2] for line in lines] == [
        "comparison.json", "compare-b.json", "truncated.json"
    ]  # fmt: skip
    assert all("not a comparison of the present format" in line and "\n" not in line for line in lines)
    assert says in lines[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [([0.51234, 0.123], "0.5123 ± 0.12"), (None, "-"), (0.98, "0.98"), (3, "3"), ([], "[]"), (["a", 1], "['a', 1]"),
     ({"test": 0.98, "seconds": 4818.7}, "test 0.98, seconds 4819")],
)  # fmt: skip
def test_cells(value, text):
    assert cell_text(value) == text


def test_nothing_is_cut_on_paper(listing, compared, tmp_path):
    ask = """(() => { document.querySelector('tbody td').textContent = 'many words '.repeat(40);
        const rules = [...document.styleSheets].flatMap(sheet => [...sheet.cssRules]);
        rules.filter(its => its.media?.mediaText === 'print').forEach(its => its.media.mediaText = 'all');
        dispatchEvent(new Event('beforeprint')); const table = document.querySelector('.scroll');
        return [...document.querySelectorAll('figure svg')].map(its => its.clientWidth)
            .concat(table.scrollWidth, table.clientWidth) })()"""
    *figures, needs, has = browse(write_site(tmp_path, listing, compared, {}), tmp_path, 1280, ask)["own"]
    assert max(figures) <= 640
    assert needs <= has


@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(listing, compared, tmp_path, width):
    charts = {"made": [Chart("x", "y")]}
    index = write_site(tmp_path, listing, compared, charts)
    choose = """(() => { const s = document.querySelector('select[name=verdict]'); s.value = 'not';
        s.dispatchEvent(new Event('input')); const text = document.querySelector('input[type=search]');
        const shown = () => document.querySelectorAll('article:not([hidden])').length; const one = shown();
        s.value = ''; text.value = 'about FIG'; text.dispatchEvent(new Event('input')); return [one, shown(),
        document.getElementById('count').textContent,
        document.querySelectorAll('section.document:not([hidden])').length] })()"""
    found = browse(index, tmp_path, width, choose)
    assert found["own"] == [1, 1, "1 of 3", 1]
    assert found["places"] == found["drawn"] == 4
    found = browse(tmp_path / "made.html", tmp_path, width)
    assert found["places"] == found["drawn"] == 2
