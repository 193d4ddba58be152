"""Noisy activations on a user's own Europarl and Flickr8k, with small files in their place."""

import io
import json
import math

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

from filigree_papers import data as own_data
from filigree_papers import models as own_models
from filigree_papers.reproduce import Bars, Request, moczulski_translation
from filigree_papers.reproduce.moczulski_translation import (
    bleu,
    guessed,
    mean_nll,
    orthogonal_,
    sentence_nll,
    stopped_early,
    uneven,
    words,
)
from written_data import write_europarl, write_flickr8k


def test_bleu_by_hand():
    """Papineni et al. 2002, example 2: two of seven; a candidate of 5 words with 4, 3, 2, 1 n-grams right of 5 to 2."""
    cat = ["tciotm", "eiacotm"]  # the cat is on the mat, there is a cat on the mat
    assert bleu(["ttttttt"], [cat], 1) == pytest.approx(100 * 2 / 7)
    assert bleu(["ttttttt"], [cat]) == 0
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4) * math.exp(1 - 6 / 5)
    assert bleu(["abcde"], [["abcdfg"]]) == pytest.approx(expected)
    assert bleu(["abcdfg"], [["xyz", "abcdfg"]]) == pytest.approx(100)
    # sums over the corpus, not a mean: 7 of 9 words, 5 of 7 pairs; 10 words in the references
    both = bleu(["abcde", "xyzw"], [["abcdfg"], ["xyzv"]], 2)
    assert both == pytest.approx(100 * math.sqrt(7 / 9 * 5 / 7) * math.exp(1 - 10 / 9))


def test_length_of_the_references_in_bleu():
    assert bleu(["abc"], [["ab", "abcd"]], 1) == pytest.approx(100)  # of 2 and 4, as close, the shorter
    assert bleu(["abc"], [["a", "abcd"]], 1) == pytest.approx(100 * math.exp(1 - 4 / 3))
    assert bleu(["abc"], [["ab", "cd"]], 1) == pytest.approx(100)  # words of all references
    assert bleu(["aab"], [["ab", "abcde"]], 1) == pytest.approx(100 * 2 / 3)  # not once for each reference
    assert bleu([""], [["ab"]], 1) == 0


def test_an_unknown_word_is_never_right():
    tokens = torch.tensor([[1, 5, 3, 6, 2, 0, 0]])
    assert guessed(tokens) == [[5, -1, 6]]
    assert words(tokens[0]) == [5, 3, 6]
    assert bleu(guessed(tokens), [[words(tokens[0])]], 1) == pytest.approx(100 * 2 / 3)


@torch.no_grad()
def test_nll_is_that_of_sentences():
    model = own_models.translator(9, 8, 4, 5).eval()
    pairs = [(torch.randint(4, 9, (n,)), torch.tensor([1, *torch.randint(3, 8, (n,)), 2])) for n in (1, 5, 3)]
    each = [cross_entropy(model(x[None], y[None])[0], y[1:], reduction="sum") for x, y in pairs]

    def nll(net, batch):
        return sentence_nll(net(*batch), batch[1])

    for size in (1, 2, 3):
        mean = mean_nll(nll, model, own_data.parallel_batches(pairs, size, 0))
        assert mean == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


def test_each_region_is_to_be_looked_at_once():
    weights = torch.tensor([[[0.5, 0.5], [1, 0], [0.25, 0.75]], [[1, 0], [0.5, 0.5], [0, 1]]])
    tokens = torch.tensor([[1, 5, 6, 2], [1, 2, 0, 0]])  # of the second, one look counts
    expected = ((1 - 1.75) ** 2 + (1 - 1.25) ** 2 + 0 + 1) / 2
    assert float(uneven(weights, tokens)) == pytest.approx(expected)


@pytest.mark.parametrize("rnn", [nn.LSTMCell(3, 5), nn.GRU(3, 5, bidirectional=True, num_layers=2)])
def test_orthogonal_recurrent_weights(rnn):
    before = {name: value.clone() for name, value in rnn.named_parameters()}
    orthogonal_(nn.Sequential(rnn), 0.01)
    for name, value in rnn.named_parameters():
        if "weight_hh" in name:
            for gate in value.detach().split(5):
                torch.testing.assert_close(gate @ gate.T, 1e-4 * torch.eye(5), rtol=1e-4, atol=1e-9)
        else:
            assert torch.equal(value, before[name])
        assert value.requires_grad


def test_the_best_look_is_tested():
    """A weight that goes from 0 to 4 in steps of 1: judged at each, it was best at 2."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.zero_()

    def judge(net, batch):
        return (net.weight - 2).abs().sum() + 1

    rows = stopped_early(
        "soft", model, lambda epoch: iter([(torch.ones(2, 1),)]), lambda net, batch: -net(batch[0]).mean(), judge,
        lambda: iter([(torch.ones(2, 1),)]), lambda net: {"tested": float(net.weight), "training": float(net.training)},
        torch.optim.SGD(model.parameters(), 1.0), 4, 4,
    )  # fmt: skip
    *looks, best = rows
    assert [row["validation NLL"] for row in looks] == pytest.approx([2, 1, 2, 3], rel=1e-5)
    assert [row["step"] for row in looks] == ["1", "2", "3", "4"]
    numbers = {"best validation NLL": 1, "best step": 2, "tested": 2, "training": 0}
    assert best == {"activation": "soft", **{key: pytest.approx(value, rel=1e-5) for key, value in numbers.items()}}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("FILIGREE_DATA", str(tmp_path))
    write_europarl(tmp_path)
    write_flickr8k(tmp_path)
    return tmp_path


@pytest.mark.parametrize("experiment", moczulski_translation.REPRODUCTIONS, ids=lambda experiment: experiment.name)
def test_every_case_runs(experiment, root):
    for case in experiment.cases:
        rows = experiment.compute(case, 0, True)
        assert {row["activation"] for row in rows} == {case}
        assert [row.get("step") for row in rows] == ["2", "4", None]
        assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
        assert {"best validation NLL", "best step", "test NLL", "BLEU-4"} <= set(rows[-1])
        assert rows == experiment.compute(case, 0, True)  # of the seed alone
    assert rows != experiment.compute(case, 1, True)


def test_how_the_captions_are_trained(root):
    first = {weight: moczulski_translation.flickr("soft", 0, True, evenness=weight)[0] for weight in (0.0, 1.0)}
    assert first[1.0]["training loss"] > first[0.0]["training loss"] + 0.3
    assert abs(first[1.0]["validation NLL"] - first[0.0]["validation NLL"]) < 0.1  # what is judged is the NLL alone


def test_where_the_recurrent_weights_start(root):
    first = {
        scale: moczulski_translation.europarl("soft", 0, True, orthogonal=scale)[0]["validation NLL"]
        for scale in (None, 1, 0.01)
    }
    assert len(set(first.values())) == 3


def test_cases_change_what_they_say(root, monkeypatch):
    seen = []
    monkeypatch.setattr(
        moczulski_translation, "stopped_early", lambda case, model, *_: seen.append((case, model)) or []
    )
    for case in ("soft", "hard", "NAH", "NAH, no dropout", "NANIL"):
        moczulski_translation.flickr(case, 0, True)
    kinds = {case: (type(model.decoder).__name__, model.readout.dropout.p) for case, model in seen}
    assert kinds == {
        "soft": ("LSTMCell", 0.5), "hard": ("NoisyLSTMCell", 0.5), "NAH": ("NoisyLSTMCell", 0.5),
        "NAH, no dropout": ("NoisyLSTMCell", 0.0), "NANIL": ("NoisyLSTMCell", 0.5),
    }  # fmt: skip
    first = seen[0][1].decoder.weight_hh
    assert all(torch.equal(model.decoder.weight_hh, first) for _, model in seen)  # all arms start alike


@pytest.mark.parametrize("experiment", moczulski_translation.REPRODUCTIONS, ids=lambda experiment: experiment.name)
def test_tables_and_claims(experiment, root, tmp_path):
    cases = experiment.cases[:3]
    with Bars(Console(file=io.StringIO())) as bars:
        _, findings = experiment.again(tmp_path / "out", Request(cases=cases, seeds=(0, 1), quick=True), bars)
    assert {finding.where for finding in findings} == {
        "Moczulski 2019, Table 4.4" if "europarl" in experiment.name else "Moczulski 2019, Table 4.3"
    }
    texts = [finding.text for finding in findings]
    for figure in ("best validation NLL" if "europarl" in experiment.name else "test NLL", "BLEU-4"):
        (soft,) = [text for text in texts if text.startswith(f"soft, {figure}: printed ")]
        assert "(2 runs, 95% [" in soft
    assert any("NAH - soft" in text and "2 pairs" in text for text in texts)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [finding["text"] for finding in summary["findings"]] == texts
    assert len(summary["rows"]) == 9
    assert "Plotly" in (tmp_path / "out" / "report.html").read_text()


def test_a_small_language_is_learned(root, monkeypatch):
    """The whole way on files: with enough steps the words are translated one by one."""
    text = own_data.parallel()
    model = own_models.translator(len(text.source), len(text.target), 16, 24)
    orthogonal_(model, 0.01)

    def nll(net, batch):
        return sentence_nll(net(*batch), batch[1])

    def score(net):
        batches = list(own_data.parallel_batches(text.train, 20, 0))
        translated = [line for x, _ in batches for line in guessed(net.translate(x))]
        return {"BLEU-4": bleu(translated, [[words(line)] for _, y in batches for line in y])}

    rows = stopped_early(
        "soft", model, lambda epoch: own_data.parallel_batches(text.train, 20, epoch), nll, nll,
        lambda: own_data.parallel_batches(text.train, 20, 0), score, torch.optim.Adam(model.parameters(), 0.01), 150, 3,
    )  # fmt: skip
    assert rows[-1]["BLEU-4"] > 80


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FILIGREE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"train.en is absent.* must hold train.en, train.fr, valid.en"):
        moczulski_translation.europarl("soft", 0, True)
    with pytest.raises(FileNotFoundError, match=r"Flickr8k.token.txt is absent.* features.npz"):
        moczulski_translation.flickr("soft", 0, True)
