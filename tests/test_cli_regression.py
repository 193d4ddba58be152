"""A quantity from the command line: trained, told apart, predicted, shown, compressed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import filigree as fg
from command_line import call
from filigree.cli.trained import load_samples
from filigree.data import Preprocessing
from filigree.recipes import RecipeError
from filigree.train import Record


def test_a_quantity_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(120, 3)).round(4)
    price = (5e4 + 1e4 * x[:, 0] - 4e3 * x[:, 1]).round(2)
    lines = [f"{a},{b},{p},{c}" for (a, b, c), p in zip(x, price, strict=True)]
    Path("houses.csv").write_text("\n".join(["a,b,price,c", *lines]) + "\n")
    train = "train", "demo", "--data", "houses.csv", "--target", "price", "--out", "r", "--set", "model.hidden=[40]"
    code, _, err = call(monkeypatch, capsys, *train)
    assert code == 1
    assert "--task regression" in err
    few = "--set", "seeds=[0]", "--set", "data.validation=0.2", "--method", "dense", "--method", "SET"
    code, out, err = call(monkeypatch, capsys, *train, "--task", "regression", *few, "--set", "training.epochs=40")
    assert code == 0, err
    assert "quantity 'price'" in out
    assert "R2" in out
    assert "accuracy" not in out.partition("±")[2]  # of the table
    record = Record.load("r/SET-0")
    assert record.config["data"]["task"] == "regression"
    assert record.config["training"]["lr"] == 0.003  # the recipe's for quantities
    assert record.metrics["test_r2"] > 0.9
    assert 0 < record.metrics["test_rmse"] < 0.35 * price.std()
    assert {"train_r2", "val_r2", "test_r2"} <= record.history[0].keys()
    assert "accuracy" not in "".join(record.metrics)
    assert "test R2" in Path("r/report.html").read_text()
    code, out, err = call(monkeypatch, capsys, "predict", "r/SET-0", "houses.csv", "-o", "out.csv")
    assert code == 0, err
    written = [line.split(",") for line in Path("out.csv").read_text().splitlines()]
    assert written[0] == ["row", "price", "prediction"]
    truth, guess = np.array(written[1:], float)[:, 1:].T
    assert truth.tolist() == price.tolist()
    error = np.sqrt(((guess - truth) ** 2).mean())
    assert f"R2 {1 - error**2 / truth.var():.3f}, RMSE {error:.4g}"[:-1] in out
    code, out, err = call(monkeypatch, capsys, "show", "r/SET-0")
    assert code == 0, err
    assert "says price, a number" in out
    assert f"test R2 {record.metrics['test_r2']:.3f}" in out
    arguments = "compress", "r/SET-0", "SubsetPruning", "-o", "small.safetensors"
    code, out, err = call(monkeypatch, capsys, *arguments, "--data", "houses.csv")
    assert code == 0, err
    assert f"test R2 {record.metrics['test_r2']:.3f} -> " in out


def test_a_file_is_read_as_the_model_knows_rows_not_by_the_files_own_mean(tmp_path):
    """In the type of the weights, and with the model's numbers for the classes, of which the file has two of three."""
    rows = np.random.default_rng(0).normal(50, 3, (40, 2)).round(3)
    network = nn.Linear(2, 3).double()
    network.preprocessing = Preprocessing([40.0, 60.0], [2.0, 4.0], ["a", "b"], ["cat", "dog", "owl"])
    file = tmp_path / "x.csv"
    file.write_text("\n".join(["a,b,kind", *(f"{a},{b},{'owl' if a > 50 else 'dog'}" for a, b in rows)]) + "\n")
    samples = load_samples(network, str(file), "compress")
    x, y = (torch.cat([getattr(part, letter) for part in (samples.train, samples.test)]) for letter in "xy")
    assert x.dtype is torch.float64
    read = x * torch.tensor([2.0, 4.0]) + torch.tensor([40.0, 60.0])
    torch.testing.assert_close(
        read[read[:, 0].argsort()], torch.tensor(rows[rows[:, 0].argsort()]), rtol=1e-5, atol=1e-4
    )
    assert torch.equal(y, torch.where(read[:, 0] > 50, 2, 1))
    network.preprocessing = Preprocessing([0.0, 0.0], [1.0, 1.0], ["a", "b"], ["cat", "dog", "emu"])
    with pytest.raises(RecipeError, match=r"classes cat, dog, emu\. Got owl too"):
        load_samples(network, str(file), "compress")
    file.write_text("\n".join(["a,b", *(f"{a},{b}" for a, b in rows)]) + "\n")
    network = nn.Linear(1, 1)
    network.preprocessing = Preprocessing(
        [0.0], [1.0], ["a"], (), "b", task="regression", target_mean=10.0, target_deviation=5.0
    )
    samples = load_samples(network, str(file), "compress", target="b")
    y = torch.cat([samples.train.y, samples.test.y]).flatten()
    torch.testing.assert_close(y.sort()[0], torch.tensor((rows[:, 1] - 10) / 5).float().sort()[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "y", "message"),
    [
        ((8,), torch.randn(8), "labels must be whole numbers"),
        ((8,), torch.randn(8, 1), r"must return \(batch, 1\)\. Got \(8,\)"),
        ((8, 2), torch.randn(8, 1), r"must return \(batch, 1\)\. Got \(8, 2\)"),
        ((8, 2), -torch.rand(8, 2), "negative numbers, which are no shares of classes"),
    ],
)
def test_quantities_of_other_shapes_are_refused(shape, y, message):
    model = nn.Sequential(nn.Linear(3, 1 if shape == (8,) else 2), nn.Flatten(0) if shape == (8,) else nn.Identity())
    with pytest.raises(ValueError, match=message):
        fg.fit(model, (torch.randn(8, 3), y), optimizer=torch.optim.SGD(model.parameters(), 0.1), epochs=1)
