"""Published tables run again, on digits in place of the papers' data."""

import json
import math

import pytest
import torch

import filigree as fg
from command_line import call
from filigree.report import Chart
from filigree_papers import data as own_data
from filigree_papers import reproduce
from filigree_papers.reproduce import (
    john_pruning,
    moczulski_mollification,
    moczulski_noise,
    moczulski_sequences,
)
from filigree_papers.reproduce.findings import unprinted
from filigree_papers.reproduce.steps import masked_loss, train_steps

DIGITS = ["--set", "data.name=digits", "--set", "data.validation=0.2", "--set", "model.hidden=[30]"]


@pytest.mark.long("trains several networks")
def test_a_table_beside_the_printed_one(tmp_path, monkeypatch, capsys):
    arguments = ["reproduce", "asymmetric-mnist", "--quick", "--seed", "0", *DIGITS, "--out", tmp_path]
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    assert "[98.19]" in out
    assert "Train minus test accuracy" in out
    assert "open  784-512-10 topk, test accuracy in %: printed 98.19, ours" in out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {row["method"] for row in summary["rows"]} == {"dense", "symmetric", "topk", "partial", "complete"}
    assert all(row["backward_ms"] > 0 for row in summary["rows"])
    assert (tmp_path / "report.html").is_file()
    assert summary["complete"] == {"784-512-10": [0]}
    assert {finding["where"] for finding in summary["findings"]} > {
        "Srivastava 2022, Table 9.1",
        "Srivastava 2022, Table 9.2",
        "Srivastava 2022, abstract",
    }
    model, record = (tmp_path / "784-512-10" / "dense-0" / name for name in ("model.safetensors", "record.json"))
    before = model.stat().st_mtime_ns, record.stat().st_mtime_ns
    call(monkeypatch, capsys, *arguments)  # goes on where it stopped: nothing is trained or timed again
    assert (model.stat().st_mtime_ns, record.stat().st_mtime_ns) == before
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_mistakes_get_one_line(tmp_path, monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, "reproduce", "nothing")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    for arguments, says in (
        (["asymmetric-mnist", "--case", "l9-9", "--out", tmp_path], "--case l9-9: the cases of asymmetric-mnist are"),
        (
            ["--document", "005"],
            "--document 005: expected an author's name, one of srivastava, chouliaras, keller, john, moczulski.",
        ),
        (["--quick"], "need a NAME"),
        (["all", "--seed", "1"], "are of single reproductions"),
        (["asymmetric-mnist", "--json", "x.json"], "are of the listing"),
    ):
        code, _, err = call(monkeypatch, capsys, "reproduce", *arguments)
        assert (code, len(err.strip().splitlines())) == (2, 1)
        assert says in err


def test_every_case_is_a_recipe():
    for table in filter(lambda experiment: isinstance(experiment, reproduce.Reproduction), reproduce.ALL.values()):
        for case in table.cases:
            for quick in (False, True):
                recipe = table.recipe_of(case, quick)
                assert set(table.printed.get(case, {})) <= set(recipe.methods)
        assert set(table.printed) <= set(table.cases)
        assert bool(table.where) == bool(table.printed)


def test_printed_winners_are_as_the_document_counts_them():
    """Srivastava 2022, chapter 10: top-k best in 60% of the 25 networks, partial in 28%, symmetric in 12%."""
    wins = [
        max(arms, key=lambda arm: arms[arm]["test"]) for arms in reproduce.ALL["asymmetric-fashion"].printed.values()
    ]
    assert [wins.count(arm) for arm in ("topk", "partial", "symmetric")] == [15, 7, 3]


def count(case, seed, quick):
    calls.append((case, seed))
    return [{"kind": case, "n": n, "value": float(n + seed)} for n in (1, 2)]


calls: list[tuple[str, int]] = []


def test_a_computation_by_cases_and_seeds(tmp_path, monkeypatch, capsys):
    experiment = reproduce.Computation(
        "counted", "Numbers.", count, ["a", "b"], seeds=(0, 2), charts=[Chart("n", "value", ["kind"])],
        claims=[lambda rows: [unprinted("Srivastava 2022, abstract", f"{len(rows)} rows")]],
    )  # fmt: skip
    monkeypatch.setitem(reproduce.ALL, "counted", experiment)
    code, out, err = call(monkeypatch, capsys, "reproduce", "counted", "--case", "a", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "2 ± 1.4" in out  # the mean of 1 and 3
    assert "open  4 rows" in out
    ledger = json.loads((tmp_path / "provenance.json").read_text())
    assert set(ledger) == {"a.0", "a.2"}
    assert all(run["finished"] and run["seconds"] >= 0 for run in ledger.values())
    call(monkeypatch, capsys, "reproduce", "counted", "--out", tmp_path)
    assert calls == [("a", 0), ("a", 2), ("b", 0), ("b", 2)]  # what stood there was kept
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["value"][0] for row in summary["rows"]] == [2, 3, 2, 3]
    assert summary["complete"] == {"a": [0, 2], "b": [0, 2]}
    after = json.loads((tmp_path / "provenance.json").read_text())
    assert {key: after[key] for key in ledger} == ledger
    assert summary["seconds"] == pytest.approx(sum(run["seconds"] for run in after.values()))
    assert "Plotly" in (tmp_path / "report.html").read_text()
    code, _, err = call(monkeypatch, capsys, "reproduce", "counted", "--set", "x=1", "--out", tmp_path)
    assert code == 2
    assert "no recipe" in err


def test_sizes_counted_as_the_document_does():
    """John 2019: "printed 76.803%, 70.37% (23.03% stay), 90.103%"."""
    for name, printed in (("lenet-300-100", 23.197), ("lenet5", 23.03), ("lenet5-like", 9.897)):
        build, _, _, keep = john_pruning.NETWORKS[name]
        assert abs(100 * john_pruning.counted_as_printed(build(), keep) - printed) < 0.005


NOISE = [
    (moczulski_noise.gaussians, "NAH", None),
    (moczulski_sequences.unique, "curriculum", None),
    (moczulski_sequences.unique, "NANIL, annealed", None),
    (moczulski_sequences.programs, "NAH, alpha 1.15", None),
    (moczulski_sequences.recall, "NAN, annealed", None),
    (moczulski_sequences.translation, "hard", None),
    (moczulski_noise.mnist, "soft + gradient noise", "mnist"),
    (moczulski_noise.words, "NAN, alpha 1.15", "ptb"),
    (moczulski_mollification.parity, "mollified, residual", None),
    (moczulski_mollification.parity, "residual + batch norm", None),
    (moczulski_mollification.pentomino, "mollified", None),
    (moczulski_mollification.words, "mollified", "ptb"),
    (moczulski_mollification.embedding, "mollified", "ptb"),
    (moczulski_mollification.residual, "mollified + stochastic depth", "cifar-10"),
]  # fmt: skip


@pytest.mark.long("a short run of every experiment with noise")
@pytest.mark.parametrize(("compute", "case", "needs"), NOISE, ids=lambda v: getattr(v, "__name__", v))
def test_experiments_with_noise_run(compute, case, needs):
    if needs and not fg.data.files.is_present(needs):
        pytest.skip(f"{needs} is not there: set FILIGREE_DATA")
    rows = compute(case, 0, True)
    assert rows
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    assert {row.get("activation", row.get("network")) for row in rows} == {case}


def test_steps_are_looked_at_and_annealed():
    model = torch.nn.Linear(2, 1)
    x = torch.randn(50, 2)
    seen = []

    class Annealing:
        def step(self, loss):
            seen.append(float(loss))

    rows = train_steps(
        model, lambda step: (x, x[:, :1] - 2 * x[:, 1:]), lambda net, xy: (net(xy[0]) - xy[1]).square().mean(),
        torch.optim.SGD(model.parameters(), 0.2), 20, lambda net: {"training": float(net.training)}, 4, [Annealing()],
    )  # fmt: skip
    assert [row["step"] for row in rows] == ["5", "10", "15", "20"]
    assert all(row["training"] == 0 for row in rows)
    assert len(seen) == 20
    assert abs(rows[0]["training loss"] - sum(seen[:5]) / 5) < 1e-6
    assert rows[-1]["training loss"] < 0.1 * rows[0]["training loss"]


def test_masked_loss_counts_where_the_mask_is_one():
    logits, y = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    expected = -sum(logits[b, t].log_softmax(0)[y[b, t]] for b, t in ((0, 0), (1, 0), (1, 1))) / 3
    torch.testing.assert_close(masked_loss(logits, y, mask), expected)


def test_a_translation_is_right_if_its_words_are():
    """A network whose translations are the wanted ones: what `translate` gives has no first <begin>."""
    _, target = own_data.tasks.translation(50, seed=0)
    translated = target[:, 1:].clone()
    assert bool(moczulski_sequences.exactly(translated, target[:, 1:]).all())
    translated[3, 2] = translated[3, 2] % 20 + 3
    shorter = translated[:, : int((translated != 0).sum(1).max())]
    assert moczulski_sequences.exactly(shorter, target[:, 1:]).logical_not().nonzero().flatten().tolist() == [3]
