"""The pages about all records, on a listing made here; also in a real browser."""

import json
import re

import pytest
from test_report import record

from browser import browse
from filigree.report import Chart, load_comparisons, summary, write_site
from filigree.storage import write_json

EVIL = "</script><script>alert(1)</script>"


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
    found = {"by": "made", "where": "000, Table 1", "verdict": "not", "text": "error: printed 2, ours 3.",
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
    assert "91.50 ± 6.35" in index  # SET, two runs
    page = (site / "made.html").read_text()
    assert "ours / printed" in page
    assert "y against x" in page
    assert "0.5 ± 0.1" in page
    assert "0123456789" in page


def test_comparisons_are_found(compared, tmp_path):
    newer = dict(compared[0], finished="2999", notes=["newer"])
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    write_json(tmp_path / "runs" / "a" / "comparison.json", compared[0])
    write_json(tmp_path / "results" / "a.json", newer)
    write_json(tmp_path / "results" / "else.json", [1])
    (found,) = load_comparisons([tmp_path / "runs", tmp_path / "results"])
    assert found["notes"] == ["newer"]
    (tmp_path / "runs" / "a" / "comparison.json").write_text("{}")
    with pytest.raises(ValueError, match="is no comparison"):
        load_comparisons([tmp_path / "runs"])


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
    assert found["places"] == found["drawn"] == 3
    found = browse(tmp_path / "made.html", tmp_path, width)
    assert found["places"] == found["drawn"] == 2
