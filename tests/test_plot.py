"""Figures and what a notebook shows."""

import numpy as np
import pytest
import torch

import filigree as fg
from filigree.train import History


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = fg.models.mlp([12, 300, 20, 3])
    fg.convert_(model, fg.Sparse(fg.ErdosRenyi(density=0.2)))
    return model


def rows(*accuracies):
    return [
        {"epoch": i, "elapsed": 2.0 * (i + 1), "train_loss": 1 - value, "val_accuracy": value}
        for i, value in enumerate(accuracies)
    ]


def test_training():
    figure = fg.plot.training(History(rows(0.1, 0.5)))
    assert list(figure.data[0].y) == [10, 50]
    assert list(figure.data[0].x) == [1, 2]
    figure = fg.plot.training({"dense": rows(0.1, 0.5), "SET": rows(0.2, 0.6)}, "train_loss", against="elapsed")
    assert {line.name: list(line.y) for line in figure.data} == {"dense": [0.9, 0.5], "SET": [0.8, 0.4]}
    assert list(figure.data[0].x) == [2, 4]
    seeds = fg.plot.training([History(rows(0.1, 0.5)), History(rows(0.3, 0.7))])
    assert list(seeds.data[1].y) == pytest.approx([20, 60])  # the first is the band
    records = [fg.Record(method="SET", history=rows(0.5, 0.6))]
    assert fg.plot.training(records).data[0].name == "SET"
    with pytest.raises(ValueError, match=r"key must be a column of the histories: .*Got 'accuracy'"):
        fg.plot.training(History(rows(0.1)), "accuracy")
    with pytest.raises(TypeError, match=r"runs must be records, folders of runs or histories. Got int"):
        fg.plot.training(3)
    with pytest.raises(ValueError, match="at least one run is expected"):
        fg.plot.training([])
    with pytest.raises(ValueError, match=r'against must be "epoch" or "elapsed". Got \'seconds\''):
        fg.plot.training(History(rows(0.1)), against="seconds")  # which are those of an epoch


def test_pattern_counts_connections(model):
    figure = fg.plot.pattern(model)
    shares = np.asarray(figure.data[0].z)
    assert shares.shape == (200, 12)
    units = np.bincount(np.arange(300) * 200 // 300, minlength=200)
    assert (shares * units[:, None]).sum() == pytest.approx(model.fc1.nnz)
    small = np.asarray(fg.plot.pattern(model, "fc3").data[0].z)
    assert np.array_equal(small != 0, model.fc3.dense().weight.detach().numpy() != 0)
    with pytest.raises(ValueError, match=r"layer must be one of fc1, fc2, fc3. Got 'fc9'"):
        fg.plot.pattern(model, "fc9")


def test_degrees(model):
    for side in ("fan_out", "fan_in"):
        figure = fg.plot.degrees(model, side)
        assert [line.name for line in figure.data] == ["fc1", "fc2", "fc3"]
        assert sum(figure.data[0].x * figure.data[0].y) == model.fc1.nnz
    with pytest.raises(ValueError, match="side must be"):
        fg.plot.degrees(model, "in")


def test_ranking(model):
    strength = model.fc1.dense()[0].weight.detach().abs().sum(0).numpy()
    np.testing.assert_allclose(fg.plot.ranking(model).data[0].y, strength, rtol=1e-5)
    np.testing.assert_allclose(fg.plot.ranking(model, (3, 4)).data[0].z, strength.reshape(3, 4), rtol=1e-5)
    np.testing.assert_allclose(fg.plot.ranking(model, (3, 2, 2)).data[0].z, strength.reshape(3, 2, 2).sum(0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"shape must be of 12 inputs. Got \(5, 2\)"):
        fg.plot.ranking(model, (5, 2))
    with pytest.raises(ValueError, match="the model has no sparse layers"):
        fg.plot.ranking(fg.models.mlp([2, 3]))


def test_pareto():
    records = [
        fg.Record(recipe="r", method=name, metrics={"test_accuracy": value, "train_seconds": seconds})
        for name, value, seconds in (("dense", 0.9, 4.0), ("SET", 0.95, 2.0))
    ]
    figure = fg.plot.pareto(records)
    assert {point.name: (point.x[0], round(point.y[0], 9)) for point in figure.data[:2]} == {
        "dense": (4, 10),
        "SET": (2, 5),
    }
    with pytest.raises(ValueError, match="cost must be one of train_seconds"):
        fg.plot.pareto(records, "joules")


def test_a_notebook_shows_tables(model):
    report = fg.convert_(fg.models.mlp([4, 50, 3]), fg.Sparse(fg.ErdosRenyi(density=0.5)))
    for shown, said in ((report, "SparseLinear"), (fg.measure(model), "bytes on disk")):
        page = shown._repr_html_()
        assert said in page
        assert page.count("<tr>") == len(shown.table_rows())
        assert said in str(shown)
    report.notes.append("a < b")
    assert "<p>a &lt; b</p>" in report._repr_html_()
    assert (
        repr(fg.data.load("digits"))
        == "DataSet(digits: 1,198 train, 0 validate, 599 test; samples of 1 x 8 x 8, 10 classes)"
    )
