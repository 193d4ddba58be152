"""Verdicts, records and their states, the listing of the documents, and all of it in one command."""

import functools
import io
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from rich.console import Console

from command_line import call
from filigree import data, recipes
from filigree.train import Record
from filigree_papers import reproduce
from filigree_papers.reproduce import (
    Request,
    chouliaras_evolution,
    documents,
    everything,
    john_pruning,
    john_retraining,
    john_subclustering,
    provenance,
    reproduction,
)
from filigree_papers.reproduce.check import essence
from filigree_papers.reproduce.claims import before, beside, ends, folds_of
from filigree_papers.reproduce.documents import Document, all_documents, scaled
from filigree_papers.reproduce.findings import (
    at_least,
    claim,
    count,
    difference,
    equal,
    figure,
    interval,
    judged,
    positive,
    runs_needed,
    share,
    together,
)
from filigree_papers.reproduce.listing import ListedEntry, NewestRecord, newest_record, tables
from filigree_papers.reproduce.run_summary import RunSummary
from filigree_papers.reproduce.steps import train_steps

HERE = Path(__file__).parent.parent


def test_the_interval_is_student_s():
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert interval([1.0]) is None


def test_a_figure_lies_within_the_interval_or_not():
    ours = [97.0, 98.0, 99.0]  # [95.5, 100.5]
    finding = figure("Srivastava 2022, Table 9.1", "top-k", 96.0, ours)
    assert (finding.verdict, finding.ours, finding.difference) == ("reproduced", 98.0, 2.0)
    assert finding.interval == interval(ours)
    assert figure("", "", 95.0, ours).verdict == "not"
    assert figure("", "", 96.0, ours).scaled().verdict == "open"
    assert figure("", "", 95.0, [95.0]).verdict == "open"
    assert figure("", "", 50.0, [10.0, 90.0]).verdict == "open"  # of an interval that holds anything
    assert figure("", "", 5000.0, [10.0, 90.0]).verdict == "not"
    assert "printed 96, ours 98 (3 runs, 95% [95.52, 100.5]), +2." in finding.text


@pytest.mark.parametrize(
    ("printed", "ours", "percent", "verdict"),
    [
        (98.19, [96.0, 98.0, 100.0], True, "open"),  # of an error of 1.81
        (98.19, [96.0, 98.0, 100.0], False, "reproduced"),
        (98.19, [98.1, 98.2, 98.2], True, "reproduced"),
        (1.81, [1.8, 1.8, 1.9], True, "reproduced"),
        (0.0, [0.1, -0.1, 0.05], False, "reproduced"),
        (0.0, [10.0, -9.0, 1.0], False, "open"),
        (100.0, [99.9, 100.0, 100.0], True, "reproduced"),
        (100.0, [97.0, 98.0, 97.5], True, "not"),
    ],
)
def test_how_wide_an_interval_may_be(printed, ours, percent, verdict):
    assert figure("", "", printed, ours, percent=percent).verdict == verdict


def test_what_was_cut_off_refutes_nothing():
    assert figure("", "", 50.0, [6.0, 6.0]).verdict == "not"
    assert figure("", "", 50.0, [6.0, 6.0], cap=6).verdict == "open"
    assert figure("", "", 25.0, [4.0, 6.0, 6.0], cap=6).verdict == "open"
    assert figure("", "", 25.0, [4.0, 4.5, 4.2], cap=6).verdict == "not"  # no run was cut off
    assert figure("", "", 1.0, [6.0, 6.0], cap=6).verdict == "not"  # ours are at least 6


def test_censored_tables_stay_open():
    rows = [{"pruned": "random", "level": "0.9", "optimizer": "adam", "lr": "0.001", "batch_size": "128",
             "epochs to regain": 6.0, "regained": 0.0, "printed, gamma 1": 0.01}] * 2  # fmt: skip
    assert [finding.verdict for finding in john_retraining.epochs_claim(rows)] == ["open", "reproduced"]
    row = {"network": "lenet5", "test %": 99.0, "times fewer parameters": 4.0, "fine-tuned %": 99.0}
    kept = [
        row | {"method": "k-means", "compensation": "least_squares", "epochs to regain": n} for n in (4.0, 6.0, 6.0)
    ]
    findings = john_pruning.tables_claim([*([row | {"method": "dense", "compensation": "-"}] * 3), *kept])
    assert [finding.verdict for finding in findings if finding.printed == 25.0] == ["open"]
    rows = [{"rule": "hoh", "p": p, "splits": 1.0, "sparsity % as printed": 1.0, "test %": 1.0,
             "epochs to regain": 4.0} for p in ("0.1", "0.8") for _ in range(2)]  # fmt: skip
    findings = john_subclustering.energy_large_claims(rows)
    assert [finding.verdict for finding in findings if finding.printed == 25] == ["open"]


def test_figures_of_scaled_entries_stay_open():
    """By the entry's state alone; counts and orders stand, and so does what has the document's size."""
    where = {f"Chouliaras 2021, Fig. 5.{number}" for number in (7, 12, 13, 15)}
    where |= {f"John 2019, Table {number}" for number in ("3.1", "3.2", "5.3", "5.9")}
    where |= {f"John 2019, section 5.5.{number}" for number in (2, 5)}
    assert where <= scaled() <= {document.key(entry) for document in all_documents() for entry in document.entries}

    def both(where):
        return lambda rows: [figure(where, "a", 11.0, [10.9, 11.0, 11.1]), count(where, "b", 3, 3)]

    def findings_at(where, long=False):
        experiment = reproduce.Computation("", "", count_up, ["a"], claims=[both(where)], long=long)
        return experiment._at_our_size(experiment.findings([]))

    def verdicts_at(where, long=False):
        return [finding.verdict for finding in findings_at(where, long)]

    assert verdicts_at("John 2019, Table 3.2") == ["open", "reproduced"]
    assert findings_at("John 2019, Table 3.2")[0].text.endswith("+0, scaled.")
    assert verdicts_at("John 2019, Table 5.1") == ["reproduced", "reproduced"]
    assert verdicts_at("John 2019, Table 3.2", long=True) == ["reproduced", "reproduced"]


def test_intervals_over_folds_are_wider():
    """Nadeau and Bengio: 9 folds of a test part half the size of the training part."""
    ours = [1.0, 2.0, 4.0, 1.5, 2.5, 0.5, 3.0, 2.0, 1.0]
    assert interval(ours, 0.5) == pytest.approx(data.paired_interval(ours, [0.0] * 9, 0.5)[1:])
    reach, plain = (high - low for low, high in (interval(ours, 0.5), interval(ours)))
    assert reach / plain == pytest.approx(math.sqrt(5.5))
    assert (positive(ours), positive(ours, folds=2.0)) == ("reproduced", "open")
    assert (equal(0.5)(ours), equal(5.0)(ours, folds=2.0)) == ("not", "open")
    assert at_least(98.0)([97.0, 97.5, 97.2]) == "not"
    assert at_least(98.0)([97.0, 97.5, 97.2], folds=2.0) == "open"
    p = scipy.stats.ttest_1samp(ours, 0.0).pvalue
    assert f"p = {p:.2g}" in difference(ours)
    assert f"p = {p:.2g}" not in difference(ours, folds=0.5)


def test_open_claims_say_how_many_runs_would_decide():
    """Against the share of simulated experiments of so many runs that the t test decides."""
    ours = [1.0, -0.5, 2.0, 0.3]  # mean .7, deviation 1.06
    (n,) = (int(text.split("about ")[1].split()[0]) for text in judged("difference", positive, ours))
    drawn = np.random.default_rng(0).normal(np.mean(ours), np.std(ours, ddof=1), (4000, n))
    p = scipy.stats.ttest_1samp(drawn, 0.0, axis=1)
    assert ((p.pvalue < 0.05) & (p.statistic > 0)).mean() == pytest.approx(0.8, abs=0.05)
    assert runs_needed(equal(1.0), [0.5, -2.0, 1.5]) > runs_needed(equal(2.0), [0.5, -2.0, 1.5])
    assert runs_needed(positive, ours, folds=0.5) is None  # folds share samples: more of them never tell
    assert judged("", positive, [1.0]) == {"": "open"}
    assert [*judged("", positive, [1.0, 1.1, 0.9])] == [""]
    assert "runs would decide" in figure("a", "b", 50.0, [40.0, 70.0, 45.0]).text
    assert "runs would decide" not in figure("a", "b", 6.0, [6.0, 6.0], cap=6).text


def test_claims_of_chouliaras_know_of_their_folds():
    def records(folds):
        return {"all": {method: [
            Record(method=method, seed=seed, config={"data": {"name": "mnist", "folds": folds}},
                   cost={"batch_ms": {"median": 1.0}},
                   metrics={"test_accuracy": 0.5 + up * (seed + 1) / 100, "train_seconds": 5.0 - up + seed / 10})
            for seed in range(6)
        ] for method, up in (("dense", 0.1), ("SET", 0.5), ("EXD", 1.0), ("LDV", 0.2))}}  # fmt: skip

    assert [folds_of(records(folds)) for folds in (3, None)] == [0.5, 0.0]
    assert data.overlap({"name": "digits"}) == data.overlap({"name": "orl", "test_size": 1 / 3}) == pytest.approx(0.5)
    assert folds_of({}) == folds_of({"all": {"dense": []}}) == 0.0
    for claims in (chouliaras_evolution.glioma, *chouliaras_evolution.DATA["orl"].all()):
        for wide, plain in zip(claims(records(3)), claims(records(None)), strict=True):
            assert wide.text != plain.text  # other intervals


def test_times_that_were_not_taken_are_said():
    """A figure of times has a finding where the runs have accuracies alone."""
    runs = {"all": {method: [
        Record(method=method, seed=seed, metrics={"test_accuracy": 0.8 + seed / 100 + up}) for seed in range(3)
    ] for method, up in (("SET", 0.0), ("LDV", 0.0), ("OSV", 0.0), ("EXD", 0.02))}}  # fmt: skip
    accuracy, times = chouliaras_evolution.four_layers(runs)
    assert (accuracy.where, times.where) == ("Chouliaras 2021, Fig. 5.17", "Chouliaras 2021, Fig. 5.16")
    assert (times.text, times.verdict) == (chouliaras_evolution.UNTIMED, "open")
    assert chouliaras_evolution.four_layers({}) == []


def test_rules_of_claims():
    assert positive([1.0, 1.1, 0.9]) == "reproduced"
    assert positive([-1.0, -1.1, -0.9]) == "not"
    assert positive([-1.0, 1.1, 0.2]) == positive([1.0]) == "open"
    assert equal(0.5)([0.1, -0.1, 0.05]) == "reproduced"
    assert equal(0.1)([0.1, -0.1, 0.05]) == equal(0.1)([0.0]) == "open"
    assert equal(5.0)([1.0, 1.1, 0.9]) == "not"
    assert at_least(97)([97.0, 98.0]) == "reproduced"
    assert at_least(97)([90.0, 91.0, 90.5]) == "not"
    assert at_least(97)([95.0, 98.0]) == at_least(97)([98.0]) == "open"
    assert [share(holds) for holds in ([True, True], [True, False], [False, False])] == ["reproduced", "partly", "not"]
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
        for arm, figures in values.items()
        for value in figures
        for step in ("5", "10")
    ]


def test_ends_of_runs_and_claims_on_them():
    rows = noisy({"soft": [1.0, 1.1, 1.2], "NAN": [0.5, 0.6, 0.8], "NAH": [1.05, 1.08, 1.19]})
    assert ends(rows, "loss")["NAN"] == [0.5, 0.6, 0.8]
    assert ends(rows, "test")["NAN"] == [None, None, None]
    assert ends(rows, "accuracy") == {"soft": [], "NAN": [], "NAH": []}
    (finding,) = before("Moczulski 2019, Fig. 4.5", "Noise helps", "loss", [("NAN", "soft")], lower=True)(rows)
    assert (finding.where, finding.verdict) == ("Moczulski 2019, Fig. 4.5", "reproduced")
    assert "NAN - soft -0.467" in finding.text
    (finding,) = before("", "", "loss", [("NAN", "soft"), ("soft", "NAN")], lower=True)(rows)
    assert finding.verdict == "partly"
    (finding,) = before("", "", "loss", [], alike=[("NAH", "soft")], within=0.2)(rows)
    assert finding.verdict == "reproduced"
    assert before("", "", "loss", [("NANI", "soft")])(rows) == []
    rows[-1]["loss"] = None  # the last seed of NAH
    assert ends(rows, "loss")["NAH"] == [1.05, 1.08, None]
    (finding,) = before("", "", "loss", [("soft", "NAH")])(rows)
    assert "2 pairs" in finding.text
    assert "NAH diverged in 1 of 3 runs" in finding.text
    (finding,) = before("", "", "loss", [], alike=[("NAH", "soft")], within=0.2)(rows)
    assert finding.verdict != "reproduced"
    rows[-1] |= {"loss": 0.0, "training loss": None}  # a number that a network without numbers gives
    assert ends(rows, "loss")["NAH"] == [1.05, 1.08, None]
    rows = noisy({"soft": [1.0, 1.1, 1.2], "NAN": [0.5, 0.6, 0.8], "NAH": [1.05, 1.08, 1.19]})
    (finding,) = beside("", "loss", {"NAH": 1.1, "NANI": 2.0})(rows)
    assert finding.verdict == "reproduced"


# -- the documents -------------------------------------------------------------------------------------------------


def test_every_entry_is_well_formed():
    entries = [(document, entry) for document in all_documents() for entry in document.entries]
    keys = [document.key(entry) for document, entry in entries]
    assert len(set(keys)) == len(keys) > 90
    assert [document.author for document in all_documents()] == [
        "srivastava",
        "chouliaras",
        "keller",
        "john",
        "moczulski",
    ]
    for _, entry in entries:
        for rerun in entry.by:
            experiment = reproduce.ALL[rerun.name]
            assert rerun.case is None or rerun.case in experiment.cases
    with pytest.raises(ValueError, match="a `reason` is missing"):
        Document(cite="Nobody 2000", title="", entries=[{"where": "Table 1", "about": "", "state": "not made"}])
    with pytest.raises(ValueError, match="expected `by` where it is made"):
        Document(cite="Nobody 2000", title="", entries=[{"where": "Table 1", "about": "", "state": "full"}])


def test_all_that_can_be_made_is_reached():
    reached = {rerun.name for document in all_documents() for entry in document.entries for rerun in entry.by}
    assert reached == set(reproduce.ALL) == set(documents.expected())
    used = {
        experiment.recipe for experiment in reproduce.ALL.values() if isinstance(experiment, reproduce.Reproduction)
    }
    for name in recipes.names():
        recipe = recipes.load(name)
        text = recipe.about + " ".join(recipe.notes)
        if recipe.published or "rinted" in text or "Claims" in text:
            assert name in used, f"{name} has printed figures, and no entry"
    assert "all" not in reproduce.ALL


def test_every_entry_has_a_record_or_a_reason():
    """And what is not reproduced an assessment, and a record of an older code a check or a reason why it stands."""
    entries, _ = reproduce.list_entries(all_documents(), reproduce.ALL, [HERE / "results"])
    for listed_entry in entries:
        entry = listed_entry.entry
        records = [record for record in listed_entry.records.values() if record.summary is not None]
        assert records or entry.reason, f"{entry.where}: neither a record nor a reason"
        assert listed_entry.verdict != "not" or entry.assessment, f"{entry.where}: not reproduced, and nothing says why"
        assert listed_entry.verdict or entry.reason, f"{entry.where}: no finding, and no reason"
    assert set(documents.stands()) <= set(reproduce.ALL)


def test_committed_findings_have_their_entries():
    keys = {document.key(entry) for document in all_documents() for entry in document.entries}
    by = {d.key(e): {rerun.name for rerun in e.by} for d in all_documents() for e in d.entries}
    for file in set((HERE / "results").glob("*.json")) - set((HERE / "results").glob("compare-*.json")):
        summary = RunSummary.load(file)
        for finding in summary.findings:
            assert finding["where"] in keys, (file.name, finding["where"])
            assert summary.name in by[finding["where"]], (file.name, finding["where"])


def test_a_summary_whose_finding_has_no_place_is_named(tmp_path):
    (tmp_path / "summary.json").write_text('{"name": "x", "findings": [{"verdict": "open", "text": ""}]}')
    with pytest.raises(ValueError, match=r"present format \(findings.0.where: Field required"):
        RunSummary.load(tmp_path / "summary.json")


# -- records and their states --------------------------------------------------------------------------------------

calls = []


def count_up(case, seed, quick, scale=1.0):
    calls.append((case, seed, quick))
    if case == "broken":
        raise RuntimeError("it broke")
    return [{"case": case, "value": scale * (10 + seed)}]


def finds(rows):
    places = ("Srivastava 2022, Table 9.1", "Srivastava 2022, section 9.6")
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
    monkeypatch.setattr(
        reproduce, "all_documents", lambda: [Document(cite="Srivastava 2022", title="T.", entries=entries)]
    )
    monkeypatch.chdir(tmp_path)
    return reproduce.ALL


def test_the_listing_and_its_json(few, monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "reproduce", "--json", "listing.json")
    assert (code, err) == (0, "")
    assert [line.split()[:3] for line in out.splitlines() if "Table 9.1" in line] == [["Table", "9.1", "Numbers."]]
    assert "A curve." not in out  # of what is not made the reason counts
    assert "No time." in out
    assert "2 entries: 1 full, 1 not made. Of those that are made: 1 without a record." in out
    first, second = json.loads(Path("listing.json").read_text())
    assert (first["verdict"], first["minutes"], [rerun["record"] for rerun in first["by"]]) == (
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
    assert [rerun["record"] for rerun in first["by"]] == ["current", "none"]
    assert [(rerun["done"], rerun["asked"]) for rerun in first["by"]] == [(2, 2), (0, 0)]
    assert first["minutes"] > 0
    assert [finding["where"] for finding in first["findings"]] == ["Srivastava 2022, Table 9.1"]
    assert first["findings"][0] == first["findings"][0] | {"by": "first", "printed": 10.5, "difference": 0.0}


def test_verbose_shows_all(few, monkeypatch, capsys):
    call(monkeypatch, capsys, "reproduce", "first")
    _, out, _ = call(monkeypatch, capsys, "reproduce", "--verbose")
    text = " ".join(out.split())
    for part in ("filigree reproduce first current", "Why not made, or in part: No time.", "slip: Inverted.",
                 "open a: printed 10.5, ours 10.5"):  # fmt: skip
        assert part in text


def test_two_lines_an_entry_at_any_width():
    entries, _ = reproduce.list_entries(all_documents(), reproduce.ALL, [HERE / "results"])
    for width in (80, 100, 160):
        console = Console(width=width, file=io.StringIO())
        for table in reproduce.tables(entries, width):
            console.print(table)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) <= 2.2 * len(entries) + 6 * len(all_documents())


def test_readable_at_100_columns(few, monkeypatch, capsys):
    monkeypatch.setattr("filigree.cli.output.out.width", 100, raising=False)
    for document in reproduce.all_documents():
        assert document.entries
    _, out, _ = call(monkeypatch, capsys, "reproduce", "--document", "Srivastava")
    assert max(map(len, out.splitlines())) <= 100


def test_what_changed_is_noticed(few, tmp_path, monkeypatch, capsys):
    call(monkeypatch, capsys, "reproduce", "first")
    folders = [tmp_path / "runs"]

    def state(**options):
        return newest_record(made_of("first", **options), folders)[0]

    assert (state().state, state().current) == ("current", True)
    assert state(scale=2.0).state == "config changed"
    assert (state(seeds=(0, 1, 2)).state, state(cases=("a", "b")).state) == ("config changed", "config changed")
    monkeypatch.setattr(provenance, "code", lambda: "other")
    commit = RunSummary.load(tmp_path / "runs" / "first" / "summary.json").commit
    assert state().state == f"code changed ({(commit or 'unknown')[:7]})"
    code, out, _ = call(monkeypatch, capsys, "reproduce", "first")  # kept, and named
    assert (code, len(calls)) == (0, 2)
    assert "first: 2 of 2 runs are kept that another code or configuration made" in " ".join(out.split())
    assert state().state.startswith("code changed")


def change(path, **update):
    RunSummary.load(path).model_copy(update=update).save(path)


def test_a_run_made_again_tells_whether_the_record_stands(few, tmp_path, monkeypatch, capsys):
    call(monkeypatch, capsys, "reproduce", "first")
    path = tmp_path / "runs" / "first" / "summary.json"
    change(path, code="other", config="other")
    assert newest_record(few["first"], [tmp_path / "runs"])[0].state == "config changed"
    code, out, _ = call(monkeypatch, capsys, "reproduce", "first", "--check")
    assert (code, calls[-1]) == (0, ("a", 0, False))
    assert "first: checked, one run of a, seed 0: 1 of 1 figures agree" in " ".join(out.split())
    kept = newest_record(few["first"], [tmp_path / "runs"])[0]
    assert (kept.state.split()[0], kept.word, kept.current) == ("checked", "checked", True)
    assert kept.summary.check.files  # of the library, which the run went through
    call(monkeypatch, capsys, "reproduce", "first")  # a summary of the same runs keeps its check
    assert RunSummary.load(path).check == kept.summary.check

    change(path, code="other", check=kept.summary.check.model_copy(update={"code": "before"}))
    assert "and since its check" in newest_record(few["first"], [tmp_path / "runs"])[0].state
    rows = [row | {"value": [2 * row["value"][0], row["value"][1]]} for row in kept.summary.rows]
    change(path, rows=rows, code="other")
    code, out, _ = call(monkeypatch, capsys, "reproduce", "--check")
    assert "first: differs" in out
    assert "case=a, value: 21 recorded, 10 now" in " ".join(out.split())
    kept = newest_record(few["first"], [tmp_path / "runs"])[0]
    assert kept.state.endswith(": one run differs")
    assert not kept.current
    code, _, err = call(monkeypatch, capsys, "reproduce", "second", "--check")
    assert (code, "it has no record" in err) == (2, True)


def test_a_check_of_training_ends_at_the_first_evaluation(tmp_path):
    seen = []

    def compute(case, seed, quick):
        model = torch.nn.Linear(2, 1)
        x = torch.randn(8, 2)

        def loss(net, batch):
            seen.append(case)
            return net(batch).square().mean()

        rows = train_steps(
            model, lambda _: x, loss, torch.optim.SGD(model.parameters(), 0.1), 20, lambda _: {"one": 1.0}, 4
        )
        return [{"activation": case} | {key: row[key] for key in ("step", "one")} for row in rows]

    experiment = reproduce.Computation("steps", "", compute, ["a"], seeds=(0, 1))
    with reproduce.Bars(Console(quiet=True)) as bars:
        experiment.again(tmp_path, Request(), bars)
        assert len(seen) == 40
        done = reproduce.check(experiment, tmp_path / "summary.json", bars)
    assert (len(seen), done.part, done.figures, done.agrees) == (45, "its first evaluation", 1, True)


@pytest.mark.long("trains a small recipe, and its first epoch again")
def test_a_check_of_a_recipe_makes_its_first_epoch_again(tmp_path, monkeypatch):
    experiment = reproduce.Reproduction(
        "small", "", "demo", {"a": ["training.epochs=3", "model.hidden=[10]", "seeds=[0,1]", "data.name=digits"]}
    )  # fmt: skip
    with reproduce.Bars(Console(quiet=True)) as bars:
        experiment.again(tmp_path, Request(timed=False), bars)
        summary = RunSummary.load(tmp_path / "summary.json")
        assert all("train_seconds" not in row and row["first epoch"]["train_loss"][0] > 0 for row in summary.rows)
        done = reproduce.check(experiment, tmp_path / "summary.json", bars)
        assert (done.part, done.agrees, done.agree) == ("its first epoch", True, done.figures)
        assert "filigree/train/loop.py" in done.files
        rows = [row | {"first epoch": {"train_loss": [9.0, 0.1]}} for row in summary.rows]
        change(tmp_path / "summary.json", rows=rows)
        assert not reproduce.check(experiment, tmp_path / "summary.json", bars).agrees
        monkeypatch.setattr(sys.modules["filigree.recipes.run"], "fit", None)  # trains nothing
        experiment.again(tmp_path, Request(), bars)  # on an idle machine: adds the times
    after = RunSummary.load(tmp_path / "summary.json")
    assert all(row["train_step_ms"] > 0 for row in after.rows)


def test_a_check_takes_what_the_search_has_chosen():
    recipe = recipes.load("glioma-short")
    chosen = reproduction.as_chosen(recipe, [{"method": "SET", "lr": 0.0003}, {"method": "dense", "lr": None}])
    assert chosen.search == {}
    assert [chosen.training_of(method).lr for method in ("SET", "dense")] == [0.0003, recipe.training.lr]


def test_comments_and_docstrings_are_no_code():
    first = 'def f(x):\n    """Says."""\n    return x + 1  # why\n'
    assert essence(first) == essence("# else\n\ndef f( x ):\n    return (x\n)+1\n".replace("(x\n)", "x"))
    assert essence(first) != essence(first.replace("+ 1", "+ 2"))
    assert essence('x = "a"') != essence('x = "b"')


def test_parts_of_a_record(few, tmp_path, monkeypatch, capsys):
    call(monkeypatch, capsys, "reproduce", "first", "--seed", "1")
    kept = newest_record(few["first"], [tmp_path / "runs"])[0]
    assert (kept.state, kept.done, kept.total, kept.current) == ("current", 1, 2, False)
    call(monkeypatch, capsys, "reproduce", "first")
    assert newest_record(few["first"], [tmp_path / "runs"])[0].current
    assert calls == [("a", 1, False), ("a", 0, False)]


def test_files_without_provenance_are_kept(few, tmp_path, monkeypatch, capsys):
    """Of runs that were made before it was kept: read, and not called current."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    for seed in (0, 1):
        (folder / f"a.{seed}.json").write_text(json.dumps([{"case": "a", "value": 10.0 + seed}]))
    call(monkeypatch, capsys, "reproduce", "first")
    assert calls == []
    summary = RunSummary.load(folder / "summary.json")
    assert (summary.code, summary.config, summary.seconds, summary.complete) == (None, None, None, {"a": [0, 1]})
    assert newest_record(few["first"], [tmp_path / "runs"])[0].state == "code changed (unknown)"


def test_older_formats_are_named_in_a_line(few, tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "first.json").write_text(json.dumps({"name": "first", "lines": ["A claim."], "rows": []}))
    (tmp_path / "results" / "second.json").write_text("[1, 2]")
    code, out, err = call(monkeypatch, capsys, "reproduce", "--records", "results")
    text = " ".join(out.split())
    assert (code, err) == (0, "")
    for name in ("first", "second"):
        assert f"results/{name}.json: not a summary of the present format" in text
        assert f"`filigree reproduce {name}` writes it anew" in text


def test_the_newest_record_counts(few, tmp_path, monkeypatch, capsys):
    call(monkeypatch, capsys, "reproduce", "first")
    (tmp_path / "results").mkdir()
    summary = RunSummary.load(tmp_path / "runs" / "first" / "summary.json")
    for finished, place in (("2000-01-01T00:00:00+00:00", "runs"), ("2999-01-01T00:00:00+00:00", "results")):
        summary.model_copy(update={"finished": finished}).save(tmp_path / "results" / "first.json")
        kept, _ = newest_record(few["first"], [tmp_path / "runs", tmp_path / "results"])
        assert kept.path.parts[-2 if place == "results" else -3] == place


class Resuming(reproduce.Computation):
    resumes = True  # as a recipe does


@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_what_was_stopped(tmp_path, resumes, same):
    """A recipe goes on, by another code perhaps; a computation is made anew, so it is the new code's alone."""
    experiment = made_of() if not resumes else Resuming("counted", "Numbers.", count_up, ("a",))
    run = provenance.RunProvenance.begin(experiment.config_of("a", 0, Request()))
    run.seconds, run.commit, run.machine = 100.0, "old", {"cpu": "old"}
    if not same:
        run.code = "other"
    ledger = provenance.Ledger(tmp_path)
    ledger.runs["a", 0] = run
    ledger.save(("a", 0))
    with reproduce.Bars(Console(quiet=True)) as bars:
        experiment.again(tmp_path, Request(seeds=[0]), bars)
    after = provenance.Ledger(tmp_path).runs["a", 0]
    assert (after.code is None) == (after.config is None) == (resumes and not same)
    assert after.seconds // 1 == (100 if resumes else 0)
    assert after.machine == Record.start().machine
    assert after.commit != "old"


class Untimed(Resuming):
    def is_there(self, out, case, seed, request):
        return super().is_there(out, case, seed, request) and not request.timed


@pytest.mark.parametrize("seconds", [100.0, None])
def test_times_that_are_added_to_a_run_are_added_to_its_seconds(tmp_path, seconds):
    experiment = Untimed("counted", "Numbers.", count_up, ("a",))
    with reproduce.Bars(Console(quiet=True)) as bars:
        experiment.again(tmp_path, Request(seeds=[0], timed=False), bars)
        ledger = provenance.Ledger(tmp_path)
        ledger.runs["a", 0].seconds = seconds
        ledger.save(("a", 0))
        experiment.again(tmp_path, Request(seeds=[0]), bars)
    after = provenance.Ledger(tmp_path).runs["a", 0].seconds
    assert after is None if seconds is None else after // 1 == 100


def test_processes_keep_each_other_s_runs(tmp_path):
    first, second = provenance.Ledger(tmp_path), provenance.Ledger(tmp_path)
    first.runs["a", 0] = provenance.RunProvenance(config="first")
    first.save(("a", 0))
    second.runs["b, c.d", 1] = provenance.RunProvenance(config="second")
    second.save(("b, c.d", 1))
    first.runs["a", 0].end()
    first.save(("a", 0))
    assert provenance.Ledger(tmp_path).runs == first.runs == {**second.runs, ("a", 0): first.runs["a", 0]}
    assert first.runs["a", 0].finished


def test_the_hash_of_the_sources():
    assert provenance.code() == provenance.code()
    names = provenance.sources()
    for part in ("filigree/train/loop.py", "filigree_papers/recipes/glioma.yaml",
                 "filigree_papers/reproduce/john_pruning.py", "filigree_papers/reproduce/steps.py"):  # fmt: skip
        assert names[part].is_file()
    for apart in ("filigree/cli/application.py", "filigree/cli/exits.py", "filigree/report/page.py",
                  "filigree/sklearn/sparse_mlp.py", "filigree_papers/reproduce/findings.py",
                  "filigree_papers/reproduce/documents.yaml"):  # fmt: skip
        package, _, rest = apart.partition("/")
        assert (provenance.PACKAGES[package] / rest).is_file()
        assert apart not in names


def test_the_configuration_of_a_function_is_its_own_text():
    """Not its neighbours' in the same file: these are in the hash of the code."""
    function = functools.partial(functools.partial(count_up, scale=1.0), scale=3.0)
    source = provenance.source(function)
    assert source["arguments"] == {"scale": 3.0}
    assert "def count_up" in source["text"]
    assert "def finds" not in source["text"]


# -- minutes -------------------------------------------------------------------------------------------------------


def listed(*kept):
    document = all_documents()[0]
    return ListedEntry(document, document.entries[0], dict(zip("abc", kept, strict=False)))


def test_minutes_are_of_all_runs():
    summary = RunSummary(name="a", seconds=600.0)
    whole, part = NewestRecord("current", summary, done=3, total=3), NewestRecord("current", summary, done=3, total=12)
    guess, none = NewestRecord("none", expect=7.0), NewestRecord("none")
    long = NewestRecord("none", expect=30_000.0, long=True)
    no_time = NewestRecord("current", RunSummary(name="a"), done=3, total=3, expect=9.0)
    rough = NewestRecord("current", summary.model_copy(update={"estimated": True}), done=3, total=3)
    for kept, minutes, estimated in (
        ([whole], 10, False), ([part], 40, True), ([guess], 7, True), ([whole, guess], 17, True), ([no_time], 9, True),
        ([rough], 10, True), ([whole, long], 10, False), ([long], 30_000, True), ([none], None, True),
    ):  # fmt: skip
        listed_entry = listed(*kept)
        assert (listed_entry.minutes, listed_entry.estimated) == (minutes, estimated)
    shown = [[*tables([listed(kept)])[0].columns[-1].cells] for kept in (whole, part, long)]
    assert shown == [["10"], ["~40"], ["~21 d"]]


def test_every_entry_that_is_made_shows_its_cost(tmp_path):
    entries, _ = reproduce.list_entries(all_documents(), reproduce.ALL, [tmp_path])
    assert all(listed_entry.minutes for listed_entry in entries if listed_entry.entry.by)


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
    assert "Srivastava 2022, Table 9.1: open" in out
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


def test_what_is_current_elsewhere_is_not_run_again(few, tmp_path, monkeypatch, capsys):
    """`reproduce all --out elsewhere`: the time it says is of what it runs."""
    for name in ("first", "second"):
        call(monkeypatch, capsys, "reproduce", name)
    calls.clear()
    code, out, _ = call(monkeypatch, capsys, "reproduce", "all", "--out", "elsewhere")
    assert (code, calls) == (0, [])
    assert "0 run, 2 current" in out
    assert "Srivastava 2022, Table 9.1: open" in out
    path = tmp_path / "runs" / "first" / "summary.json"
    summary = RunSummary.load(path).model_copy(update={"code": "other", "seconds": 600.0})
    summary.save(path)
    folders = [tmp_path / "runs"]
    assert everything.estimate([few["first"]], tmp_path / "elsewhere", folders, False) == "about 10 minutes"
    assert everything.estimate([few["first"]], tmp_path / "runs", folders, False) == "a time not known"  # none left
    call(monkeypatch, capsys, "reproduce", "all", "--out", "elsewhere")
    assert calls == [("a", 0, False), ("a", 1, False)]


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
    names = {
        name for experiment in reproduce.ALL.values() for quick in (False, True) for name in experiment.needs(quick)
    }
    assert names <= {*data.names(), "ptb", *everything.OWN}


def test_a_renewed_recipe_is_trained_again(tmp_path, monkeypatch):
    experiment = reproduce.Reproduction(
        "small", "", "demo", {"a": ["training.epochs=1", "model.hidden=[10]", "seeds=[0]"]},
    )  # fmt: skip
    config = experiment.config_of("a", 0, Request())
    assert config == experiment.config_of("a", 0, Request())
    for other in (Request(quick=True), Request(settings=["training.lr=0.5"])):
        assert experiment.config_of("a", 0, other) != config
    folder = tmp_path / "a" / "dense-0"
    folder.mkdir(parents=True)
    experiment.discard(tmp_path, "a", 0, Request())
    assert not folder.exists()
    shutil.rmtree(tmp_path / "a")
