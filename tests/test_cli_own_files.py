"""Commands on what people bring: files under other names, arrays of other machines, modules in pieces."""

import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

import filigree as fg
from command_line import call
from filigree import recipes
from filigree.cli.networks import called, own_data
from filigree.cli.options import as_settings
from filigree.cli.show import _origin
from filigree.cli.trained import run_of
from filigree.recipes import RecipeError, checksum
from filigree.recipes.building import build
from filigree.recipes.plain_yaml import as_yaml, plain_yaml
from filigree.recipes.sweep import Sweep
from filigree.train import Record


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The folder of a run on own.csv in the present folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.csv").write_text("a,b,kind\n" + "".join(f"{i},{-i},{i % 2}\n" for i in range(20)))
    record = Record.start("demo", "SET", 3, {"data": {"name": "own.csv", "sha256": checksum(tmp_path / "own.csv")}})
    record.metrics = {"test_accuracy": 0.5}
    record.save(tmp_path / "run")
    fg.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "run" / "model.safetensors")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["own.csv", "./own.csv", "{}/own.csv", "../{folder}/own.csv"])
def test_the_run_of_a_file_is_known_by_any_name_of_it(name, trained, tmp_path):
    source = name.format(tmp_path, folder=tmp_path.name)
    record = run_of(trained, source)
    assert record is not None
    assert recipes.data_of(record).notes[-2].startswith("split by seed 3")
    assert record.config["data"]["name"] == source  # which is read, also from another folder
    (tmp_path / "other.csv").write_text("a,b,kind\n1,2,0\n")
    assert run_of(trained, "other.csv") is run_of(trained, "none.csv") is run_of(trained, "digits") is None


def test_what_else_lies_in_the_folder_of_a_run_is_not_judged_by_it(trained):
    smaller = trained / "smaller.safetensors"
    smaller.write_bytes((trained / "model.safetensors").read_bytes())
    assert "test accuracy 50.00%" in _origin(trained / "model.safetensors")[1]
    assert len(_origin(smaller)) == 1


def test_functions_may_import_when_they_are_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "layers_of_mine.py").write_text("from torch import nn\nmake = lambda: nn.Linear(3, 2)\n")
    code = "def build():\n    import layers_of_mine\n    return layers_of_mine.make()\n"
    code = f"import sys\nsys.path.insert(0, '/mine')\n{code}"
    (tmp_path / "net_of_mine.py").write_text(code)
    assert called("python:net_of_mine:build").in_features == 3
    assert "/mine" in sys.path


def test_arrays_of_any_order_of_bytes_and_none_of_words(tmp_path):
    network, file = nn.Linear(3, 2), tmp_path / "a.npz"
    np.savez(file, x=np.arange(12.0).reshape(4, 3).astype(">f8"), y=np.array([0, 1, 0, 1], dtype=">i8"))
    x, y = own_data(network, str(file))
    assert x.equal(torch.arange(12.0).view(4, 3))
    assert y.tolist() == [0, 1, 0, 1]
    np.savez(file, x=np.zeros((2, 3)), y=np.array(["red", "blue"]))
    with pytest.raises(RecipeError, match=r"--data .*a.npz: y must hold numbers. Got <U4\."):
        own_data(network, str(file))
    torch.save({"x": torch.zeros(2, 3), "y": "red"}, tmp_path / "a.pt")
    with pytest.raises(RecipeError, match=r"--data .*a.pt: y must hold numbers. Got a str\."):
        own_data(network, str(tmp_path / "a.pt"))


@pytest.mark.parametrize("value", ["🎯 Art", 'a"b\\ud83d', "\x7f\x85\u2028\ufeff", "yes", ["🜛", "x"], 12, True, None])
def test_values_reach_a_recipe_as_they_are(value):
    assert plain_yaml(as_yaml(value)) == value
    assert "\n" not in as_yaml(value)


def test_columns_with_any_letters():
    assert recipes.load("demo", as_settings({"target": "🎯", "drop": ["🜛"]})).data.target == "🎯"
    searched = Sweep("demo", {}, "SET")._overrides({"data.target": "🎯"})
    assert recipes.load("demo", searched).data.target == "🎯"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "digits", "mnist"], "compare digits: one data set or file at a time, or folders of runs. Got 2."),
        (["compare", "runs", "own.csv"], "compare own.csv: one data set or file at a time, or folders of runs. Got 2."),
        (["report", "run", "again"], "report: demo: SET with seed 3 is there twice. Compare them apart."),
        (["report", "-o", "own.csv"], "report -o own.csv: without runs a folder is written; this is a file."),
        (
            ["sweep", "demo", "--method", "SET", "--over", "k=1", "--over", "k=2"],
            "--over k: is given twice; values have commas between.",
        ),
        (["sweep", "demo", "--method", "SET", "--over", "k"], "--over k: expected KEY=DOMAIN, k=10:200."),
    ],
)
def test_arguments_that_do_not_go_together(arguments, message, trained, monkeypatch, capsys):
    shutil.copytree(trained, "again")
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert (code in (1, 2), err) == (True, f"filigree: {message}\n")


def test_a_method_that_fits_no_layer_is_named():
    recipe = recipes.load("compare", ["model.hidden=[16]"])
    with pytest.raises(RecipeError, match=r"^methods.ACDC: convert_: no layer would gain by ACDC"):
        build(recipe, "ACDC", fg.data.load("digits"), 0)
