"""Quantities: what a file's numbers become, and what a model's output says in their unit."""

import numpy as np
import pytest
import torch
from torch import nn

import filigree as fg
from filigree.data import cross_validation, read_rows
from filigree.data.preprocessing import set_preprocessing
from filigree.export.raw_rows import reads_raw_rows, says_quantities
from filigree.recipes import data_of
from filigree.train import Record


def houses(tmp_path, name="houses.csv", separator=",", decimal="."):
    """A table of areas, ages and prices; the price is 1e6 + 100 area - 3 age."""
    area, age = np.random.default_rng(0).uniform(20, 200, 90).round(2), np.arange(90) * 7 % 41
    price = (1e6 + 100 * area - 3 * age).round(2)
    rows = [
        separator.join(str(cell).replace(".", decimal) for cell in row) for row in zip(area, age, price, strict=True)
    ]
    (tmp_path / name).write_text("\n".join([separator.join(("area", "age", "price")), *rows]) + "\n")
    return tmp_path / name, price


@pytest.mark.parametrize(("separator", "decimal"), [(",", "."), (";", ",")])
def test_a_quantity_is_standardised_by_the_training_part_and_comes_back(separator, decimal, tmp_path):
    file, price = houses(tmp_path, separator=separator, decimal=decimal)
    data = fg.data.load(file, target="price", task="regression", validation=0.2)
    assert (data.task, data.classes, data.class_names) == ("regression", 1, ())
    assert data.train.y.shape == (48, 1)
    assert data.train.y.dtype == torch.float32
    assert abs(float(data.train.y.mean())) < 1e-6
    assert abs(float(data.train.y.std(correction=0)) - 1) < 1e-6
    assert data.notes[0].startswith("houses.csv: 90 rows, 2 features, quantity 'price': 1.0")
    own = data.preprocessing
    parts = [own.quantities(part.y) for part in (data.train, data.validation, data.test)]
    np.testing.assert_allclose(np.sort(torch.cat(parts)[:, 0].numpy()), np.sort(price), rtol=1e-7)
    rows = read_rows(file, own)
    assert [float(label) for label in rows.labels] == price.tolist()


def test_folds_of_a_quantity_are_not_stratified(tmp_path):
    file, price = houses(tmp_path)
    folds = list(cross_validation(file, folds=3, target="price", task="regression", validation=0.1))
    tested = torch.cat([fold.preprocessing.quantities(fold.test.y) for fold in folds])[:, 0]
    np.testing.assert_allclose(np.sort(tested.numpy()), np.sort(price), rtol=1e-7)
    with pytest.raises(ValueError, match="folds must be at most 90, its samples"):
        next(cross_validation(file, folds=91, target="price", task="regression"))


def test_fit_and_evaluate_measure_a_quantity_by_the_squared_error(tmp_path):
    file, _ = houses(tmp_path)
    data = fg.data.load(file, target="price", task="regression")
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    history = fg.fit(model, data.train, optimizer=optimizer, epochs=30, test=data.test, batch_size=16)
    assert history.metrics["test_r2"] > 0.999
    with torch.no_grad():
        output = model(data.test.x)
    expected = 1 - (output - data.test.y).square().sum() / (data.test.y - data.test.y.mean()).square().sum()
    assert history[-1]["test_r2"] == pytest.approx(float(expected), abs=1e-5)
    assert fg.evaluate(model, data.test)["r2"] == pytest.approx(float(expected), abs=1e-5)
    assert set(fg.evaluate(model, data.test, loss=nn.functional.l1_loss)) == {"loss"}  # another loss says no R2
    set_preprocessing(model, data.preprocessing)
    fg.save(nn.Sequential(model), tmp_path / "m.safetensors")  # the wrapper has no preprocessing
    fg.save(model, tmp_path / "m.safetensors")
    own = fg.load(tmp_path / "m.safetensors", into=nn.Linear(2, 1)).preprocessing
    rows = read_rows(file, own)
    whole = reads_raw_rows(says_quantities(model, own), own)  # what is exported
    with torch.no_grad():
        torch.testing.assert_close(whole(rows.x).double(), own.quantities(model(own(rows.x))), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        (range(60), {}, r"the label 'y' looks like a quantity, .*--task regression.*task='classification'"),
        (["a", "b"] * 30, {"task": "regression"}, "needs numbers as label 'y'. Got 'a'"),
        ([3] * 60, {"task": "regression"}, "must be two different ones at least"),
        ([1, "inf"] * 30, {"task": "regression"}, "must be finite"),
        (range(60), {"task": "ranking"}, "task must be one of 'classification', 'regression'. Got 'ranking'"),
    ],
)
def test_a_label_that_does_not_suit_the_task_is_one_line(cells, options, message, tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("x,y\n" + "".join(f"{i % 9}.5,{cell}\n" for i, cell in enumerate(cells)))
    with pytest.raises(ValueError, match=message) as raised:
        fg.data.load(file, **options)
    assert "\n" not in str(raised.value)


def test_numbers_are_classes_where_that_is_said(tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("x,y\n" + "".join(f"{i % 9}.5,{i % 40}\n" for i in range(79)))
    with pytest.raises(ValueError, match="looks like a quantity"):
        fg.data.load(file)
    assert fg.data.load(file, task="classification", stratify=False).classes == 40


def test_data_of_a_set_have_no_task():
    with pytest.raises(ValueError, match="task and transpose are for files of your own"):
        fg.data.load("digits", task="regression")


def test_a_record_says_how_its_data_were_read(tmp_path):
    file, _ = houses(tmp_path)
    record = Record(config={"data": {"name": str(file), "target": "price", "task": "regression"}}, folder=tmp_path)
    assert data_of(record).task == "regression"
