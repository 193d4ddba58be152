"""Verdicts, records and their states, the listing of the documents, and all of it in one command."""

import functools
import json
import math
import shutil
from pathlib import Path

import pytest

from filigree import data, recipes, reproduce
from filigree.reproduce import Asked, everything, provenance
from filigree.reproduce.claims import before, beside, ends
from filigree.reproduce.documents import Document, all_documents
from filigree.reproduce.findings import at_least, claim, count, equal, figure, interval, positive, share, together
from filigree.reproduce.listing import newest
from filigree.reproduce.summary import Summary
from test_cli import call

HERE = Path(__file__).parent.parent


def test_the_interval_is_student_s():
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert interval([1.0]) is None


def test_a_figure_lies_within_the_interval_or_not():
    ours = [97.0, 98.0, 99.0]  # [95.5, 100.5]
    found = figure("000, Table 9.1", "top-k", 96.0, ours)
    assert (found.verdict, found.ours, found.difference) == ("reproduced", 98.0, 2.0)
    assert found.interval == interval(ours)
    assert figure("", "", 95.0, ours).verdict == "not"
    assert figure("", "", 96.0, ours, scaled=True).verdict == "open"
    assert figure("", "", 95.0, [95.0]).verdict == "open"
    assert figure("", "", 50.0, [10.0, 90.0]).verdict == "open"  # of an interval that holds anything
    assert figure("", "", 5000.0, [10.0, 90.0]).verdict == "not"
    assert "printed 96, ours 98 (3 runs, 95% [95.52, 100.5]), +2." in found.text


def test_rules_of_claims():
    assert positive([1.0, 1.1, 0.9]) == "reproduced"
    assert positive([-1.0, -1.1, -0.9]) == "not"
    assert positive([-1.0, 1.1, 0.2]) == positive([1.0]) == "open"
    assert equal(0.5)([0.1, -0.1, 0.05]) == "reproduced"
    assert equal(0.1)([0.1, -0.1, 0.05]) == equal(0.1)([0.0]) == "open"
    assert equal(5.0)([1.0, 1.1, 0.9]) == "not"
    assert at_least([97.0, 98.0], 97) == "reproduced"
    assert at_least([90.0, 91.0, 90.5], 97) == "not"
    assert at_least([95.0, 98.0], 97) == at_least([98.0], 97) == "open"
    assert [share(its) for its in ([True, True], [True, False], [False, False])] == ["reproduced", "partly", "not"]
    assert [count("", "", 100, ours).verdict for ours in (100, 104, 106)] == ["reproduced", "partly", "not"]
    assert count("", "", 90.103, 90.10312, digits=3).verdict == "reproduced"


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "open"], "partly"),
        (["reproduced", "not"], "partly"),
        (["partly", "not"], "partly"),
        (["not", "open"], "not"),
        (["open", "open"], "open"),
        ([], "open"),
    ],
)
def test_a_claim_of_parts(parts, whole):
    assert together(parts) == whole
    assert claim("", "", {str(i): part for i, part in enumerate(parts)}).verdict == whole


def noisy(values):
    """Rows as of a computation: arm -> figure of each run at the end, after a worse one."""
    return [
        {"activation": arm, "step": step, "loss": value + (step == "5"), "test": None}
        for arm, its in values.items()
        for value in its
        for step in ("5", "10")
    ]


def test_ends_of_runs_and_claims_on_them():
    rows = noisy({"soft": [1.0, 1.1, 1.2], "NAN": [0.5, 0.6, 0.8], "NAH": [1.05, 1.08, 1.19]})
    assert ends(rows, "loss")["NAN"] == [0.5, 0.6, 0.8]
    assert ends(rows, "test")["NAN"] == [None, None, None]
    assert ends(rows, "accuracy") == {"soft": [], "NAN": [], "NAH": []}
    (found,) = before("004, Fig. 4.5", "Noise helps", "loss", [("NAN", "soft")], lower=True)(rows)
    assert (found.where, found.verdict) == ("004, Fig. 4.5", "reproduced")
    assert "NAN - soft -0.467" in found.text
    (found,) = before("", "", "loss", [("NAN", "soft"), ("soft", "NAN")], lower=True)(rows)
    assert found.verdict == "partly"
    (found,) = before("", "", "loss", [], alike=[("NAH", "soft")], within=0.2)(rows)
    assert found.verdict == "reproduced"
    assert before("", "", "loss", [("NANI", "soft")])(rows) == []
    rows[-1]["loss"] = None  # the last seed of NAH
    assert ends(rows, "loss")["NAH"] == [1.05, 1.08, None]
    (found,) = before("", "", "loss", [("soft", "NAH")])(rows)
    assert "2 pairs" in found.text
    assert "NAH diverged in 1 of 3 runs" in found.text
    (found,) = before("", "", "loss", [], alike=[("NAH", "soft")], within=0.2)(rows)
    assert found.verdict != "reproduced"
    rows = noisy({"soft": [1.0, 1.1, 1.2], "NAN": [0.5, 0.6, 0.8], "NAH": [1.05, 1.08, 1.19]})
    (found,) = beside("", "loss", {"NAH": 1.1, "NANI": 2.0})(rows)
    assert found.verdict == "reproduced"


# -- the documents -------------------------------------------------------------------------------------------------


def test_every_entry_is_well_formed():
    entries = [(document, entry) for document in all_documents() for entry in document.entries]
    keys = [document.key(entry) for document, entry in entries]
    assert len(set(keys)) == len(keys) > 90
    assert [document.id for document in all_documents()] == ["000", "001", "002", "003", "004"]
    for _, entry in entries:
        for maker in entry.by:
            made = reproduce.ALL[maker.name]
            assert maker.case is None or maker.case in made.cases
    with pytest.raises(ValueError, match="a `reason` is missing"):
        Document(id="005", title="", entries=[{"where": "Table 1", "about": "", "state": "not made"}])
    with pytest.raises(ValueError, match="expected `by` where it is made"):
        Document(id="005", title="", entries=[{"where": "Table 1", "about": "", "state": "full"}])


def test_all_that_can_be_made_is_reached():
    reached = {maker.name for document in all_documents() for entry in document.entries for maker in entry.by}
    assert reached == set(reproduce.ALL)
    used = {made.recipe for made in reproduce.ALL.values() if isinstance(made, reproduce.Reproduction)}
    for name in recipes.names():
        recipe = recipes.load(name)
        text = recipe.about + " ".join(recipe.notes)
        if recipe.published or "rinted" in text or "Claims" in text:
            assert name in used, f"{name} has printed figures, and no entry"
    assert "all" not in reproduce.ALL


def test_committed_findings_have_their_entries():
    keys = {document.key(entry) for document in all_documents() for entry in document.entries}
    by = {d.key(e): {maker.name for maker in e.by} for d in all_documents() for e in d.entries}
    for file in set((HERE / "results").glob("*.json")) - set((HERE / "results").glob("compare-*.json")):
        summary = Summary.load(file)
        for finding in summary.findings:
            assert finding["where"] in keys, (file.name, finding["where"])
            assert summary.name in by[finding["where"]], (file.name, finding["where"])


# -- records and their states --------------------------------------------------------------------------------------

calls = []


def count_up(case, seed, quick, scale=1.0):
    calls.append((case, seed, quick))
    if case == "broken":
        raise RuntimeError("it broke")
    return [{"case": case, "value": scale * (10 + seed)}]


def finds(rows):
    places = ("000, Table 9.1", "000, section 9.6")
    return [figure(where, row["case"], 10.5, [r["value"] for r in rows]) for row in rows[:1] for where in places]


def made_of(name="counted", cases=("a",), seeds=(0, 1), **options):
    return reproduce.Computation(name, "Numbers.", functools.partial(count_up, **options), cases, seeds, claims=[finds])


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Two reproductions in place of all, in an empty folder."""
    calls.clear()
    monkeypatch.setattr(reproduce, "ALL", {name: made_of(name) for name in ("first", "second")})
    entries = [
        {"where": "Table 9.1", "about": "Numbers.", "by": ["first", "second"], "state": "full"},
        {"where": "Fig. 9.9", "about": "A curve.", "state": "not made", "reason": "No time.", "slip": "Inverted."},
    ]
    monkeypatch.setattr(reproduce, "all_documents", lambda: [Document(id="000", title="T.", entries=entries)])
    monkeypatch.chdir(tmp_path)
    return reproduce.ALL


def test_the_listing_and_its_json(few, monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "reproduce", "--json", "listing.json")
    assert (code, err) == (0, "")
    assert "filigree reproduce first" in out
    assert "2 entries: 1 full, 1 not made. Of those that are made: 1 without a record." in out
    first, second = json.loads(Path("listing.json").read_text())
    assert (first["verdict"], first["minutes"], [its["record"] for its in first["by"]]) == (
        None,
        None,
        ["none", "none"],
    )
    assert (second["by"], second["slip"], second["reason"]) == ([], "Inverted.", "No time.")
    call(monkeypatch, capsys, "reproduce", "first")
    call(monkeypatch, capsys, "reproduce", "second", "--quick", "--out", "runs/second")  # nothing about the full one
    call(monkeypatch, capsys, "reproduce", "--json", "listing.json")
    first = json.loads(Path("listing.json").read_text())[0]
    assert first["verdict"] == "open"  # [4.1, 16.9] decides nothing
    assert [its["record"] for its in first["by"]] == ["current", "none"]
    assert [(its["done"], its["asked"]) for its in first["by"]] == [(2, 2), (0, 0)]
    assert first["minutes"] > 0
    assert [finding["where"] for finding in first["findings"]] == ["000, Table 9.1"]
    assert first["findings"][0] == first["findings"][0] | {"by": "first", "printed": 10.5, "difference": 0.0}


def test_readable_at_100_columns(few, monkeypatch, capsys):
    monkeypatch.setattr("filigree.cli.out.width", 100, raising=False)
    for document in reproduce.all_documents():
        assert document.entries
    _, out, _ = call(monkeypatch, capsys, "reproduce", "--document", "000")
    assert max(map(len, out.splitlines())) <= 100


def test_what_changed_is_noticed(few, tmp_path, monkeypatch, capsys):
    call(monkeypatch, capsys, "reproduce", "first")
    folders = [tmp_path / "runs"]

    def state(**options):
        return newest(made_of("first", **options), folders)[0]

    assert (state().state, state().current) == ("current", True)
    assert state(scale=2.0).state == "config changed"
    assert (state(seeds=(0, 1, 2)).state, state(cases=("a", "b")).state) == ("config changed", "config changed")
    monkeypatch.setattr(provenance, "code", lambda: "other")
    commit = Summary.load(tmp_path / "runs" / "first" / "summary.json").commit
    assert state().state == f"code changed ({(commit or 'unknown')[:7]})"
    code, out, _ = call(monkeypatch, capsys, "reproduce", "first")  # kept, and named
    assert (code, len(calls)) == (0, 2)
    assert "first: 2 of 2 runs are kept that another code or configuration made" in " ".join(out.split())
    assert state().state.startswith("code changed")


def test_parts_of_a_record(few, tmp_path, monkeypatch, capsys):
    call(monkeypatch, capsys, "reproduce", "first", "--seed", "1")
    kept = newest(few["first"], [tmp_path / "runs"])[0]
    assert (kept.state, kept.done, kept.asked, kept.current) == ("current", 1, 2, False)
    call(monkeypatch, capsys, "reproduce", "first")
    assert newest(few["first"], [tmp_path / "runs"])[0].current
    assert calls == [("a", 1, False), ("a", 0, False)]


def test_files_without_provenance_are_kept(few, tmp_path, monkeypatch, capsys):
    """Of runs that were made before it was kept: read, and not called current."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    for seed in (0, 1):
        (folder / f"a.{seed}.json").write_text(json.dumps([{"case": "a", "value": 10.0 + seed}]))
    call(monkeypatch, capsys, "reproduce", "first")
    assert calls == []
    summary = Summary.load(folder / "summary.json")
    assert (summary.code, summary.config, summary.seconds, summary.complete) == (None, None, None, {"a": [0, 1]})
    assert newest(few["first"], [tmp_path / "runs"])[0].state == "code changed (unknown)"


def test_older_formats_are_named_in_a_line(few, tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "first.json").write_text(json.dumps({"name": "first", "lines": ["A claim."], "rows": []}))
    (tmp_path / "results" / "second.json").write_text("[1, 2]")
    code, out, err = call(monkeypatch, capsys, "reproduce", "--records", "results")
    said = " ".join(out.split())
    assert (code, err) == (0, "")
    for name in ("first", "second"):
        assert f"results/{name}.json: not a summary of the present format" in said
        assert f"`filigree reproduce {name}` writes it anew" in said


def test_the_newest_record_counts(few, tmp_path, monkeypatch, capsys):
    call(monkeypatch, capsys, "reproduce", "first")
    (tmp_path / "results").mkdir()
    summary = Summary.load(tmp_path / "runs" / "first" / "summary.json")
    for finished, place in (("2000-01-01T00:00:00+00:00", "runs"), ("2999-01-01T00:00:00+00:00", "results")):
        summary.model_copy(update={"finished": finished}).save(tmp_path / "results" / "first.json")
        kept, _ = newest(few["first"], [tmp_path / "runs", tmp_path / "results"])
        assert kept.path.parts[-2 if place == "results" else -3] == place


def test_seconds_of_a_stopped_run_add_up(few, tmp_path, monkeypatch, capsys):
    ledger = provenance.Ledger(tmp_path)
    run = provenance.Run.begin(few["first"].config_of("a", 0, Asked()))
    ledger.runs["a", 0] = run.model_copy(update={"seconds": 100.0})
    ledger.runs["a, b.c", 1] = run
    ledger.save()
    assert provenance.Ledger(tmp_path).runs == ledger.runs
    call(monkeypatch, capsys, "reproduce", "first", "--seed", "0", "--out", tmp_path)
    assert 100 <= Summary.load(tmp_path / "summary.json").seconds < 110


def test_the_hash_of_the_sources():
    package = Path(provenance.__file__).parent.parent
    assert provenance.code() == provenance.code()
    files = {file.suffix for file in package.rglob("*") if file.suffix in provenance.SOURCES}
    assert {".py", ".yaml"} <= files
    made = functools.partial(functools.partial(count_up, scale=1.0), scale=3.0)
    assert provenance.source(made)["arguments"] == {"scale": 3.0}
    assert "def count_up" in provenance.source(made)["module"]


# -- all -----------------------------------------------------------------------------------------------------------


def test_all_skips_what_is_current_and_survives_a_failure(few, tmp_path, monkeypatch, capsys):
    few["broken"] = made_of("broken", ("broken",))
    few["last"] = made_of("last")
    few["days"] = reproduce.Computation("days", "", few["last"].compute, ["a"], long=True)
    code, out, err = call(monkeypatch, capsys, "reproduce", "all", "--quick")
    assert (code, err) == (1, "")
    assert calls == [("a", 0, True), ("a", 0, True), ("broken", 0, True), ("a", 0, True), ("a", 0, True)]
    assert "broken failed: RuntimeError: it broke" in out
    assert "4 run, 0 current, 1 failed, 0 without data" in out
    assert "000, Table 9.1: open" in out
    assert (tmp_path / "runs" / "last-quick" / "summary.json").is_file()
    calls.clear()
    few["broken"] = made_of("broken")
    code, out, _ = call(monkeypatch, capsys, "reproduce", "all", "--quick")
    assert (code, calls) == (0, [("a", 0, True)])
    assert "1 run, 4 current, 0 failed, 0 without data" in out
    calls.clear()
    monkeypatch.setattr(provenance, "code", lambda: "other")
    call(monkeypatch, capsys, "reproduce", "all", "--quick", "--out", "runs")
    assert len(calls) == 5  # of another code: made again
    calls.clear()
    code, out, _ = call(monkeypatch, capsys, "reproduce", "all")
    assert (code, len(calls)) == (0, 8)  # two seeds of each, without what takes days


def test_missing_data_are_named(few, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("FILIGREE_DATA", str(tmp_path / "nothing"))
    few["second"] = reproduce.Computation("second", "", few["second"].compute, ["a"], data=["mnist", "europarl"])
    code, out, _ = call(monkeypatch, capsys, "reproduce", "all", "--quick")
    assert code == 3
    assert "second: needs data: mnist, europarl (FILIGREE_DATA); skipped" in out
    assert "1 run, 0 current, 0 failed, 1 without data" in out
    (tmp_path / "nothing" / "europarl").mkdir(parents=True)
    assert everything.absent(["digits", "mnist", "europarl"]) == ["mnist"]


def test_data_are_known():
    names = {name for made in reproduce.ALL.values() for quick in (False, True) for name in made.needs(quick)}
    assert names <= {*data.names(), "ptb", *everything.OWN}


def test_a_renewed_recipe_is_trained_again(tmp_path, monkeypatch):
    made = reproduce.Reproduction(
        "small", "", "demo", {"a": ["training.epochs=1", "model.hidden=[10]", "seeds=[0]"]},
    )  # fmt: skip
    config = made.config_of("a", 0, Asked())
    assert config == made.config_of("a", 0, Asked())
    for other in (Asked(quick=True), Asked(settings=["training.lr=0.5"])):
        assert made.config_of("a", 0, other) != config
    folder = tmp_path / "a" / "dense-0"
    folder.mkdir(parents=True)
    made.discard(tmp_path, "a", 0, Asked())
    assert not folder.exists()
    shutil.rmtree(tmp_path / "a")
