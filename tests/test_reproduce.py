"""Published tables run again, on digits in place of the papers' data."""

import json

from filigree import reproduce
from filigree.report import Chart
from test_cli import call

DIGITS = ["--set", "data.name=digits", "--set", "data.validation=0.2", "--set", "model.hidden=[30]"]


def test_a_table_beside_the_printed_one(tmp_path, monkeypatch, capsys):
    arguments = ["reproduce", "asymmetric-mnist", "--quick", "--seed", "0", *DIGITS, "--out", tmp_path]
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    assert "[98.19]" in out
    assert "Train minus test accuracy" in out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {row["method"] for row in summary["rows"]} == {"dense", "symmetric", "topk", "partial", "complete"}
    assert all(row["backward_ms"] > 0 for row in summary["rows"])
    assert (tmp_path / "report.html").is_file()
    before = (tmp_path / "784-512-10" / "dense-0" / "model.safetensors").stat().st_mtime_ns
    call(monkeypatch, capsys, *arguments)  # goes on where it stopped: nothing is trained again
    assert (tmp_path / "784-512-10" / "dense-0" / "model.safetensors").stat().st_mtime_ns == before


def test_mistakes_get_one_line(tmp_path, monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, "reproduce", "nothing")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    code, _, err = call(monkeypatch, capsys, "reproduce", "asymmetric-mnist", "--case", "l9-9", "--out", tmp_path)
    assert code == 2
    assert "--case l9-9: the cases of asymmetric-mnist are 784-512-10" in err


def test_every_case_is_a_recipe():
    for table in filter(lambda made: isinstance(made, reproduce.Reproduction), reproduce.ALL.values()):
        for case in table.cases:
            for quick in (False, True):
                table.recipe_of(case, quick)
        assert set(table.printed) == set(table.cases)


def test_printed_winners_are_as_the_document_counts_them():
    """000, chapter 10: top-k best in 60% of the 25 networks, partial in 28%, symmetric in 12%."""
    wins = [
        max(arms, key=lambda arm: arms[arm]["test"]) for arms in reproduce.ALL["asymmetric-fashion"].printed.values()
    ]
    assert [wins.count(arm) for arm in ("topk", "partial", "symmetric")] == [15, 7, 3]


def count(case, seed, quick):
    calls.append((case, seed))
    return [{"kind": case, "n": n, "value": float(n + seed)} for n in (1, 2)]


calls: list[tuple[str, int]] = []


def test_a_computation_by_cases_and_seeds(tmp_path, monkeypatch, capsys):
    made = reproduce.Computation(
        "counted", "Numbers.", count, ["a", "b"], seeds=(0, 2), charts=[Chart("n", "value", ["kind"])],
        claims=[lambda rows: f"{len(rows)} rows"],
    )  # fmt: skip
    monkeypatch.setitem(reproduce.ALL, "counted", made)
    code, out, err = call(monkeypatch, capsys, "reproduce", "counted", "--case", "a", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "2 ± 1.4" in out  # the mean of 1 and 3
    assert "4 rows" in out
    call(monkeypatch, capsys, "reproduce", "counted", "--out", tmp_path)
    assert calls == [("a", 0), ("a", 2), ("b", 0), ("b", 2)]  # what stood there was kept
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["value"][0] for row in summary["rows"]] == [2, 3, 2, 3]
    assert "Plotly" in (tmp_path / "report.html").read_text()
    code, _, err = call(monkeypatch, capsys, "reproduce", "counted", "--set", "x=1", "--out", tmp_path)
    assert code == 2
    assert "no recipe" in err
