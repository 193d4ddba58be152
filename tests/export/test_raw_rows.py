"""Files that read raw rows: a model's preprocessing is saved with it, given back, and exported before its layers."""

import json
import os

import numpy as np
import pytest
import torch
from torch import nn

import filigree as fg
from c_program import run_c
from filigree import recipes
from filigree.data import Preprocessing
from filigree.export.c.compiler import compiler

needs_a_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


def table(path, rows=90, far=0.0):
    """Three species told apart by columns of very different scales, as a CSV file; its raw rows and classes."""
    generator = np.random.default_rng(0)
    y = np.arange(rows) % 3
    x = generator.normal(size=(rows, 3)) + 2 * np.eye(3)[y]
    x = (x * [1, 1000, 0.01] + [far, 5, -far]).astype(np.float32)
    lines = [f"{','.join(map(repr, row))},{'abc'[label]}" for row, label in zip(x.tolist(), y, strict=True)]
    path.write_text("\n".join(["length,weight,angle,species", *lines]))
    return torch.from_numpy(x), np.array(list("abc"))[y]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that a recipe trained on a file, its raw rows and classes."""
    folder = tmp_path_factory.mktemp("run")
    x, labels = table(folder / "own.csv")
    recipe = recipes.load("demo", ["model.hidden=[40]", "training.epochs=15", "seeds=[0]"])
    folders = recipes.run(recipe, folder / "out", methods=["SET"], source=folder / "own.csv", progress=False)
    return fg.load(folders[0] / recipes.MODEL).eval(), x, labels


def share_right(outputs, model, labels):
    return float(np.mean(np.array(model.preprocessing.class_names)[np.asarray(outputs).argmax(1)] == labels))


def test_a_model_trained_on_an_own_file_knows_its_raw_rows(trained):
    model, x, labels = trained
    own = model.preprocessing
    assert own.feature_names == ("length", "weight", "angle")
    assert (own.class_names, own.target_name) == (("a", "b", "c"), "species")
    assert share_right(model(own(x)).detach(), model, labels) > 0.8
    assert share_right(model(x).detach(), model, labels) < 0.7
    torch.testing.assert_close(own.raw(own(x)), x, rtol=1e-5, atol=1e-5)


def test_inputs_are_those_that_the_data_set_gives(tmp_path):
    table(tmp_path / "own.csv")
    split = fg.data.load(tmp_path / "own.csv")
    raw = fg.data.load(tmp_path / "own.csv", standardize=None)
    assert torch.equal(split.preprocessing(raw.test.x), split.test.x)
    assert raw.preprocessing.leaves_numbers
    digits = fg.data.load("digits", images=True)
    plain = fg.data.load("digits", images=True, standardize=None)
    assert torch.equal(digits.preprocessing(plain.train.x), digits.train.x)


def test_it_is_saved_compressed_and_given_back(trained, tmp_path):
    model, x, _ = trained
    fg.compress_(model, fg.MagnitudePruning(keep=0.5, measure=False), model.preprocessing(x))
    fg.save(model, tmp_path / "m")
    again = fg.load(tmp_path / "m").eval()
    assert torch.equal(again(again.preprocessing(x)), model(model.preprocessing(x)))
    assert fg.measure(model).bytes_disk == pytest.approx(os.path.getsize(tmp_path / "m"), abs=800)


def test_onnx_files_read_raw_rows_and_name_the_classes(trained, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model, x, _ = trained
    report = fg.export(model, tmp_path / "m.onnx", model.preprocessing(x), seconds=0)
    assert report.relative < 1e-4
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    (outputs,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(outputs, model(model.preprocessing(x)).detach(), rtol=1e-4, atol=1e-4)
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["class_names"]) == ["a", "b", "c"]
    assert json.loads(known["feature_names"]) == ["length", "weight", "angle"]
    assert known["target_name"] == "species"
    fg.export(model, tmp_path / "m.onnx", model.preprocessing(x), seconds=0, raw=False)
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    (outputs,) = session.run(None, {session.get_inputs()[0].name: model.preprocessing(x).numpy()})
    np.testing.assert_allclose(outputs, model(model.preprocessing(x)).detach(), rtol=1e-4, atol=1e-4)


@needs_a_compiler
@pytest.mark.parametrize("far", [0.0, 1e5])
def test_c_files_read_raw_rows(far, tmp_path):
    torch.manual_seed(0)
    x, _ = table(tmp_path / "own.csv", far=far)
    split = fg.data.load(tmp_path / "own.csv")
    model = fg.models.mlp([3, 20, 3])
    model.preprocessing = split.preprocessing
    for example in (split.test.x, None):
        assert fg.export(model, tmp_path / "m.c", example).relative < 1e-4
        expected = model(model.preprocessing(x)).detach()
        np.testing.assert_allclose(run_c(tmp_path / "m.c", x), expected, rtol=1e-4, atol=1e-4)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    def forward(self, x):
        return self.body(x)


@needs_a_compiler
def test_models_of_your_own_on_images(tmp_path):
    data = fg.data.load("digits", images=True)
    model = Own().eval()
    model.preprocessing = data.preprocessing
    fg.export(model, tmp_path / "m.c", data.test.x[:8])
    raw = data.preprocessing.raw(data.test.x[:8])
    np.testing.assert_allclose(run_c(tmp_path / "m.c", raw), model(data.test.x[:8]).detach(), rtol=1e-4, atol=1e-4)
    fg.save(model, tmp_path / "m")
    again = fg.load(tmp_path / "m", into=Own())
    assert torch.equal(again.preprocessing.mean, data.preprocessing.mean)


def test_what_is_refused_in_a_line(tmp_path):
    model = fg.models.mlp([3, 4, 2])
    with pytest.raises(ValueError, match="raw=True is of a model with an attribute preprocessing"):
        fg.export(model, tmp_path / "m.c", raw=True)
    own = model.preprocessing = Preprocessing([1.0, 2.0, 3.0], [1.0, 1.0, 2.0])
    with pytest.raises(ValueError, match=r"rows must be \(rows, 3 features\). Got \(4, 2\)"):
        own(torch.ones(4, 2))
    with pytest.raises(ValueError, match="raw=True is for inference"):
        fg.export(model, tmp_path / "m.c", training=True, raw=True)
    fg.export(model, tmp_path / "m.c", training=True)  # what trains reads what the model reads
    for wrong, reason in (
        ({"mean": [1.0], "deviation": [0.0]}, "deviation above 0"),
        ({"mean": [1.0, 2.0], "deviation": [1.0]}, "as many numbers"),
        ({"mean": [1.0, 2.0], "deviation": [1.0, 1.0], "feature_names": ["a"]}, "2 features and 1 names"),
        ({"mean": [float("nan")], "deviation": [1.0]}, "must be finite"),
        ({"mean": [1.0], "deviation": [1.0], "class_names": [1]}, "class_names must be text"),
    ):
        with pytest.raises(ValueError, match=reason):
            Preprocessing(**wrong)
