"""The table and the page, on records made here; the page also in a real browser."""

import math
import re

import pytest
from rich.console import Console

from browser import browse
from filigree.report import console_table, figures, refuse_incomparable, summary_table, write_report
from filigree.report.table import commit_text, short
from filigree.train import Record


def record(method, seed=0, accuracy=0.9, step=2.0, recipe="digits", epochs=4):
    made = Record.start(recipe, method, seed, {"about": "A test.", "data": {"input_shape": [1, 4, 4]}})
    made.history = [
        {"epoch": i, "train_loss": 1 / (i + 1), "train_accuracy": accuracy, "test_loss": 2 / (i + 1),
         "test_accuracy": accuracy - 0.1 / (i + 1), "seconds": step, "elapsed": step * (i + 1), "lr": 0.1,
         **({} if method == "dense" else {"zeta": 0.3, "rewire_seconds": 0.01})}
        for i in range(epochs)
    ]  # fmt: skip
    made.metrics = {"test_accuracy": accuracy, "train_seconds": step * epochs, "rewire_share": 0.01}
    timing = {"median": step, "low": step * 0.9, "high": step * 1.2}
    made.cost = {"parameters": int(1000 * step), "nonzeros": 900, "bytes_memory": 4000, "bytes_disk": 4100,
                 "macs_forward": 950, "train_step_ms": timing, "batch_ms": timing, "single_ms": timing}  # fmt: skip
    if method != "dense":
        for epoch in (0, 1, 3):
            made.topology.append(
                {"epoch": epoch, "layer": "fc1", "in_features": 16, "out_features": 5, "nnz": 30,
                 "fan_in": [[5, 2], [6, 3]], "fan_out": [[1, 8], [2, 8]], "input_connectivity": list(range(16))}
            )  # fmt: skip
    return made.model_dump()


@pytest.fixture
def records():
    return [
        record(m, seed, a + seed / 100, s) for m, a, s in (("EXD", 0.91, 1.0), ("dense", 0.9, 4.0)) for seed in (0, 1)
    ]


def test_summary_by_hand(records):
    dense, exd = summary_table(records)
    assert (dense.method, exd.method, exd.runs) == ("dense", "EXD", 2)
    assert exd.accuracy == pytest.approx(0.915)
    assert exd.deviation == pytest.approx(0.01 / math.sqrt(2))
    assert exd.interval == pytest.approx(12.706 * exd.deviation * math.sqrt(1 / 2 + 1 / 2), rel=1e-3)  # a third tests
    assert exd.against_dense == pytest.approx((0.01, 0.01, 0.01))
    assert dense.against_dense is None
    assert exd.ratios["train_step_ms"] == pytest.approx(0.25)
    assert dense.ratios["parameters"] == 1
    assert summary_table(records[:2])[0].ratios["parameters"] is None  # nothing dense to compare with


def test_console_table_fits(records):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - of the console
    console.print(console_table(records))
    text = console.export_text()
    assert "0.25x" in text
    assert "…" not in text
    console.file.close()


def test_page_is_one_file_and_escapes(records, tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    records.append(record(evil, accuracy=0.5) | {"notes": [evil], "config": {"about": evil, "x": evil}})
    page = write_report(records, tmp_path / "deep" / "page.html", title=evil).read_text()
    assert "<script>alert" not in page
    assert "<img" not in page
    body = page[page.index("</script>") :]
    assert not re.search(r'(src|href)="(?!data:)', body)
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["page.html"]


def test_costs_that_no_run_has_take_no_column(records, tmp_path):
    without = write_report(records, tmp_path / "a.html").read_text()
    records[0]["metrics"]["train_joules"] = 12.5
    given = write_report(records, tmp_path / "b.html").read_text()
    for column in ("<th scope=col>training J</th>", "<th scope=col>perplexity</th>"):
        assert column not in without
    assert "<th scope=col>training J</th>" in given


def test_readers_of_screens_reach_rows_and_buttons(records, tmp_path):
    page = write_report(records, tmp_path / "page.html").read_text()
    assert page.count("<th scope=row>") == 2
    assert "updatemenus" not in page.rpartition("const figures")[2].partition("const draw")[0]
    assert "both corrected (Nadeau and Bengio 2003) where runs share training samples" in page


def test_the_button_changes_the_axes(records, tmp_path):
    ask = """(() => { const button = document.querySelector('button.scale'), kind = () =>
        button.nextElementSibling.querySelector('figure').layout.xaxis.type, seen = [button.closest('[role=img]')];
        for (let i = 0; i < 2; i++) { button.click(); seen.push(kind(), button.getAttribute('aria-pressed')) }
        return seen })()"""
    page = browse(write_report(records, tmp_path / "page.html"), tmp_path, 1280, ask)
    assert page["own"] == [None, "log", "true", "linear", "false"]


def test_one_epoch_is_a_point(tmp_path):
    """A line through a single point is nothing to see."""
    runs = [record(m, seed, 0.8 + seed / 10, epochs=1) for m in ("dense", "SET") for seed in (0, 1)]
    groups = {"SET": runs[2:]}
    point = figures.curves(groups, "test_accuracy", "epoch", "t", 100.0).data
    assert [trace.mode for trace in point] == ["markers"]
    assert (point[0].y[0], point[0].error_y.array[0]) == (pytest.approx(75), pytest.approx(5))
    assert figures.curves({"SET": [record("SET")]}, "test_accuracy", "epoch", "t").data[0].mode == "lines"
    ask = (
        "[...document.querySelectorAll('figure .scatterlayer .trace')].every(t => t.querySelector('.point, .js-line'))"
    )
    page = browse(write_report(runs, tmp_path / "page.html"), tmp_path, 1280, ask)
    assert page["own"] is True


def test_a_page_made_outside_of_git_names_no_commit(records, tmp_path):
    for run in records:
        run["commit"] = None
    page = write_report(records, tmp_path / "page.html").read_text()
    assert "commit None" not in page
    assert "no commit known" in page
    assert commit_text("0123456789abcdef", True) == "commit 0123456789 (with changes)"


def test_the_page_opens_with_the_answer(records, tmp_path):
    for run in records:
        run["config"]["about"] = "See `filigree list`."
    page = write_report(records, tmp_path / "page.html").read_text().partition("<main>")[2]
    answer = "<li><b>EXD</b>: 0.25x the parameters, 0.25x the training time, test accuracy +1.00 points (95%: +1.00 to"
    assert page.index(answer) < page.index("<table>")
    assert "See <code>filigree list</code>." in page
    alone = write_report(records[:1] + records[2:3], tmp_path / "one.html").read_text()
    assert "test accuracy +1.00 points</li>" in alone
    assert "Against dense" not in write_report(records[:2], tmp_path / "sparse.html").read_text()


def test_what_is_pictured_of_topologies_and_costs(records, tmp_path):
    """A method that moves connections is open, one that does not has one picture; no place for energy unmeasured."""
    static = record("Static")
    for row in static["history"]:
        row["zeta"] = 0.0
    page = write_report([static, *records], tmp_path / "page.html").read_text()
    first, second = re.findall(r"<details.*?</details>", page.partition("<h3>Topology</h3>")[2], re.S)[:2]
    assert first.startswith("<details open><summary>EXD")
    assert [part.count("connections of each input") for part in (first, second)] == [3, 1]
    ratios = figures.bars(records, {"train_seconds": "training", "train_joules": "energy"}, "t", ratio=True)
    assert [list(trace.x) for trace in ratios.data] == [["training"]] * 2
    assert {trace.type for trace in figures.bars(records, {"nonzeros": "n"}, "t", ratio=False, log=True).data} == {
        "scatter"
    }
    assert not figures.bars(records, {"train_joules": "energy"}, "t", ratio=True).data


def test_a_page_says_when_and_where_all_runs_were_made(records, tmp_path):
    for hour, run in zip((5, 3, 4, 6), records, strict=True):
        run |= {"started": f"2026-01-01T0{hour}:00", "finished": f"2026-01-01T0{hour}:30"}
    records[1]["machine"] = records[1]["machine"] | {"cpu": "another"}
    records[2]["versions"] = records[2]["versions"] | {"torch": "9.9"}
    records[3]["finished"] = None
    page = write_report(records, tmp_path / "page.html").read_text()
    assert "4 runs, 2026-01-01T03:00 to 2026-01-01T05:30, 1 unfinished<" in page
    assert ">another, " in page
    assert f">{records[0]['machine']['cpu']}, " in page
    assert "torch 9.9" in page


def test_runs_on_different_data_make_no_mean(records):
    for run, (name, digest) in zip(
        records, [("a.csv", "1"), ("./a.csv", "1"), ("a.csv", "1"), (None, "1")], strict=True
    ):
        run["config"]["data"] |= {"name": name, "sha256": digest}
    refuse_incomparable(records, "report")
    records[3]["config"]["data"] |= {"name": "b.csv", "sha256": "2"}
    with pytest.raises(ValueError, match=r"report: runs of 'digits' are of different data, a\.csv and b\.csv"):
        refuse_incomparable(records, "report")
    with pytest.raises(ValueError, match="report: digits: EXD with seed 0 is there twice"):
        refuse_incomparable([records[0], records[0]], "report")
    records[0]["config"]["sweep"] = {"minimize": "single_ms"}  # of which two trials may be the same
    refuse_incomparable([records[0], records[0]], "report")


@pytest.mark.parametrize(
    ("value", "text"), [(0.1564, "0.156"), (999.4, "999"), (999.6, "1k"), (999_600, "1M"), (2_080_000, "2.08M")]
)
def test_numbers_in_three_digits(value, text):
    assert short(value) == text


def test_records_from_folders_and_bad_ones(records, tmp_path):
    for i, content in enumerate(records):
        Record(**content).save(tmp_path / f"run{i}")
    assert write_report([tmp_path], tmp_path / "page.html").exists()
    bad = tmp_path / "bad.json"
    for text, message in (
        ("{", "Invalid JSON"),
        ("[]", "not a filigree record"),
        ('{"format": 1}', "not a filig"),
    ):
        bad.write_text(text)
        with pytest.raises(ValueError, match=message):
            write_report([bad], tmp_path / "page2.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no record\.json"):
        write_report([tmp_path / "empty"], tmp_path / "page2.html")
    with pytest.raises(ValueError, match="at least one record"):
        write_report([], tmp_path / "page2.html")
    assert not (tmp_path / "page2.html").exists()


@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(records, tmp_path, width):
    page = browse(write_report(records, tmp_path / "page.html"), tmp_path, width)
    assert page["places"] == page["drawn"] > 5
