"""The recipes of the documents, the parameter counts, and what the documentation says of them."""

import re
from pathlib import Path

import pytest

from command_line import call
from filigree import recipes
from filigree_papers import reproduce
from filigree_papers.counts import counts
from filigree_papers.reproduce import chouliaras_evolution
from filigree_papers.reproduce.documents import all_documents
from test_docs import WRITTEN, commands, ids


def test_the_list_shows_recipes_and_reproductions(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "list")
    assert code == 0
    for name in ("fashion-3x1000", "glioma", "filigree reproduce TABLE", "asymmetric-mnist"):
        assert name in out


def test_the_listing_is_not_written_to_a_folder_that_is_absent(tmp_path, monkeypatch, capsys):
    nowhere = tmp_path / "none" / "a.json"
    code, _, err = call(monkeypatch, capsys, "reproduce", "--json", nowhere)
    assert (code, err) == (2, f"filigree: {nowhere}: there is no folder {nowhere.parent} to write to.\n")


def test_the_counts_are_shown(monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "counts")
    assert (code, err) == (0, "")
    assert "Prostate-GE" in out


@pytest.mark.parametrize("page", WRITTEN, **ids)
def test_reproductions_named_in_the_documentation_exist(page):
    """Words in capitals stand for any."""
    words = [arguments[1] for arguments in commands(page) if arguments[:1] == ["reproduce"] and arguments[1:]]
    words += re.findall(r"`(?:\S*/)?filigree reproduce ([\w.-]+)", page.read_text())
    for word in words:
        assert word.startswith("-") or word.isupper() or word in (*reproduce.ALL, "all"), word


def test_documents_are_cited_in_one_way():
    """Every place that an experiment names is an entry of documents.yaml."""
    keys = {document.key(entry) for document in all_documents() for entry in document.entries}
    for claims in chouliaras_evolution.DATA.values():
        assert {f"Chouliaras 2021, {claims.accuracy}", f"Chouliaras 2021, {claims.times}"} <= keys
    cites = "|".join(re.escape(document.cite) for document in all_documents())
    for file in Path(reproduce.__file__).parent.glob("*_*.py"):
        for place in re.findall(rf'(?<!")"((?:{cites}), [^"]+)"(?!")', file.read_text()):
            assert place in keys or "{self." in place, f"{file.name}: {place}"


def test_the_seven_settings_of_the_thesis():
    settings = {
        "lung": ("lung", [1000] * 3, 2), "orl": ("orl", [1000] * 3, 2), "prostate-ge": ("prostate-ge", [1000] * 3, 2),
        "glioma": ("glioma", [1000] * 3, 2), "fashion-3x1000": ("fashion-mnist", [1000] * 3, 100),
        "fashion-4000-1000-4000": ("fashion-mnist", [4000, 1000, 4000], 100),
        "fashion-4x4000": ("fashion-mnist", [4000] * 4, 100),
    }  # fmt: skip
    for name, (source, hidden, batch) in settings.items():
        recipe = recipes.load(name)
        assert (recipe.data.name, recipe.model.hidden, recipe.training.batch_size) == (source, hidden, batch)
        assert (recipe.training.epochs, recipe.training.lr, recipe.training.momentum) == (500, 0.01, 0.9)
        assert recipe.model.dropout == 0.3
        dense = set() if name == "fashion-4x4000" else {"dense"}  # where the thesis has none
        assert set(recipe.methods) == {"Static", "SET", "LDV", "OSV", "EXD"} | dense
        assert recipe.methods["EXD"].evolution.regrow == "initial"
        short = recipes.load(f"{name}-short")
        assert short.training.epochs == 30
        assert short.methods["EXD"].evolution.schedule.horizon == 500
        assert any("rescaled" in note for note in short.notes)


def test_counts_of_appendix_b():
    rows = counts()
    assert len(rows) == 7
    ours = {"LUNG": (174_245, 171_463), "ORL": (144_320, 137_371), "Prostate-GE": (224_322, 221_129),
            "GLIOMA": (195_684, 192_758), "Fashion 3 x 1000": (128_690, 124_985),
            "Fashion 4000-1000-4000": (344_690, 335_380), "Fashion 4 x 4000": (631_690, 622_467)}  # fmt: skip
    for row in rows:
        assert row.dense == row.printed_dense
        assert row.distinct == ours[row.setting][0]
        assert row.merged == pytest.approx(ours[row.setting][1], rel=0.002)  # drawn: within chance of the notes' figure
        assert abs(row.difference) < 0.05
