"""A quantity from the command line: trained, told apart, predicted, shown, compressed."""

from pathlib import Path

import numpy as np

from filigree.train import Record
from test_cli import call


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
